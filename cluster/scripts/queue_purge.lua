-- Removes dead letters: those named, or up to 128 that died before a time. A leader's retention is fenced by its epoch (0: an operator).
-- A worker that one was left by, and that may come back, is not told that nobody ever heard of it: its owner may offer it again.
-- KEYS of the queue    ARGV epoch, older_than_ms, id... (none: by age)
-- {1, removed} | {0, epoch}
check_keys()
local DEAD, META, BODY, EPOCH, PAST, PAST_AT = KEYS[7], KEYS[8], KEYS[9], KEYS[14], KEYS[15], KEYS[16]
local mine, seen = tonumber(ARGV[1]), tonumber(redis.call('GET', EPOCH) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if mine > 0 and mine < seen then return {0, seen} end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local ids, metas = {}, {}
for i = 3, math.min(#ARGV, 130) do ids[#ids + 1] = ARGV[i] end
if #ids == 0 then
  ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', string.format('%.0f', now - tonumber(ARGV[2])), 'LIMIT', 0, 128)
end
for i, id in ipairs(ids) do metas[i] = meta_of(id) or false end
if mine > 0 then redis.call('SET', EPOCH, string.format('%.0f', mine)) end
local removed = 0
for i, id in ipairs(ids) do
  if redis.call('ZREM', DEAD, id) == 1 then
    redis.call('HDEL', META, id)
    redis.call('HDEL', BODY, id)
    if metas[i] and metas[i][12] then
      redis.call('HSET', PAST, id, '\n' .. metas[i][7] .. '\npurged')
      redis.call('ZADD', PAST_AT, now, id)
    end
    removed = removed + 1
  end
end
if removed > 0 then tally('purged', removed) end
return {1, removed}
