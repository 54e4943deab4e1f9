-- The owner has settled these: their outcomes are forgotten. KEYS of the queue    ARGV owner, id... (at most 128)
-- number forgotten
check_keys()
local DONE, OUTCOME = KEYS[11], KEYS[12]
if #ARGV > 129 then return redis.error_reply('ERR ringpost: at most 128 ids') end
local forgotten = 0
for i = 2, #ARGV do
  local outcome = redis.call('HGET', OUTCOME, ARGV[i])
  if outcome and string.match(outcome, '^[^\n]*\n([^\n]*)\n') == ARGV[1] then
    redis.call('HDEL', OUTCOME, ARGV[i])
    redis.call('ZREM', DONE, ARGV[i])
    forgotten = forgotten + 1
  end
end
return forgotten
