-- One page of the dead letters, the oldest first. KEYS of the queue    ARGV offset, count (at most 128)
-- {places, {id, died_ms, owner, priority, attempts, max_attempts, created_ms, reason}, ...}: of as many places those that can be read
local DEAD = KEYS[7]
local offset, count = tonumber(ARGV[1]), math.min(tonumber(ARGV[2]), 128)
local found = redis.call('ZRANGE', DEAD, offset, offset + count - 1, 'WITHSCORES')
local answer = {#found / 2}
for i = 1, #found, 2 do
  local meta = meta_of(found[i])
  if meta then answer[#answer + 1] = {found[i], tonumber(found[i + 1]), meta[7], meta[2], meta[3], meta[4], meta[5], meta[10]} end
end
return answer
