-- Names of items that match a pattern, a part at a time, in no order; some may come twice.
-- KEYS of the queue    ARGV cursor ('0': the beginning), pattern
-- {next cursor ('0': the end), id, ...}
local found = redis.call('HSCAN', KEYS[8], ARGV[1], 'MATCH', ARGV[2], 'COUNT', 256)
local answer = {found[1]}
for i = 1, #found[2], 2 do answer[#answer + 1] = found[2][i] end
return answer
