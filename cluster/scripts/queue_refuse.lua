-- Records that their owner does not believe, and its own that are not signed yet, give way to its signed word that it has the item: a worker's
-- late claim is to hear that. Not where another record has taken their place.
-- KEYS of the queue    ARGV for each (at most 64): id, record (its first 1024 bytes), the owner's word
-- {code, ...}: 1 it is not there any more | 0 another is
check_keys()
local DONE, OUTCOME, PAST = KEYS[11], KEYS[12], KEYS[15]
local items = #ARGV / 3
if items ~= math.floor(items) or items < 1 or items > 64 then return redis.error_reply('ERR ringpost: 1 to 64 items') end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local answer = {}
for i = 1, items do
  local id, record, word = ARGV[i * 3 - 2], ARGV[i * 3 - 1], ARGV[i * 3]
  local outcome = redis.call('HGET', OUTCOME, id)
  if not outcome then
    answer[i] = 1
  elseif string.sub(outcome, 1, 1024) == record then
    redis.call('HSET', OUTCOME, id, word)
    redis.call('ZADD', DONE, heard_at(now), id)
    if redis.call('HGET', PAST, id) == outcome then redis.call('HSET', PAST, id, word) end
    if string.sub(record, 1, 1) ~= '\n' then tally('unproven', 1) end
    answer[i] = 1
  else
    answer[i] = 0
  end
end
return answer
