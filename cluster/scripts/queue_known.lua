-- What became of ids: the owner's question after silence (Q18). KEYS of the queue    ARGV random, id... (at most 128)
-- {generation, answer, ...}: '' unknown | R S L D, where it is (r s l d: it was in none of its places, and is there again), behind R and S why a worker gave it back | 'X' and the record of its completion, as far as one can be long |
-- 'W' and the record of its owner's having taken it back, or ended it
local DONE, OUTCOME, GENERATION = KEYS[11], KEYS[12], KEYS[13]
if #ARGV > 129 then return redis.error_reply('ERR ringpost: at most 128 ids') end
local generation = redis.call('GET', GENERATION)
if not generation then
  generation = ARGV[1]
  redis.call('SET', GENERATION, generation)
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local heard = heard_at(now)
local answer = {generation}
for i = 2, #ARGV do
  local meta = meta_of(ARGV[i])
  if meta then
    answer[i] = put_back(ARGV[i], meta, now) and string.lower(meta[1]) or meta[1]
    if meta[1] == 'R' or meta[1] == 'S' then answer[i] = answer[i] .. string.sub(meta[10], 1, 512) end
  else
    if meta == false then drop(ARGV[i]) end
    local outcome = redis.call('HGET', OUTCOME, ARGV[i])
    local kind = outcome and (string.sub(outcome, 1, 1) == '\n' and 'W' or 'X')
    -- Of its owner's own there is nothing to be heard.
    if kind == 'X' then redis.call('ZADD', DONE, 'XX', heard, ARGV[i]) end
    answer[i] = kind and (kind .. string.sub(outcome, 1, 1024)) or ''
  end
end
return answer
