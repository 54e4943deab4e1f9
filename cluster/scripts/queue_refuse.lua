-- Records of completions that their owner does not believe give way to its own that it has the item, as when it withdraws one: a worker's
-- late claim is to hear that. Not where another record has taken their place.
-- KEYS of the queue    ARGV owner, then for each (at most 64): id, record (its first 1024 bytes)
-- {code, ...}: 1 it is not there any more | 0 another is
local COUNTERS, DONE, OUTCOME = KEYS[10], KEYS[11], KEYS[12]
local items = (#ARGV - 1) / 2
if items ~= math.floor(items) or items < 1 or items > 64 then return redis.error_reply('ERR ringpost: 1 to 64 items') end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local answer = {}
for i = 1, items do
  local id = ARGV[i * 2]
  local outcome = redis.call('HGET', OUTCOME, id)
  if not outcome then
    answer[i] = 1
  elseif string.sub(outcome, 1, 1024) == ARGV[i * 2 + 1] then
    redis.call('HSET', OUTCOME, id, '\n' .. ARGV[1] .. '\nwithdrawn')
    redis.call('ZADD', DONE, now, id)
    redis.call('HINCRBY', COUNTERS, 'unproven', 1)
    answer[i] = 1
  else
    answer[i] = 0
  end
end
return answer
