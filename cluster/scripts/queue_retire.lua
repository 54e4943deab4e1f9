-- Removes dead letters that have been watched for long enough, in a part of them. Of the server's clock only its steps from look to look count, and of
-- each a minute at most: a clock that jumps, or that nobody has watched for long, removes nothing. A leader's chore, fenced by its epoch.
-- KEYS of the queue    ARGV epoch, kept_ms, offset
-- {1, removed, next offset (0: the beginning)} | {0, epoch}
check_keys()
local DEAD, META, EPOCH = KEYS[7], KEYS[8], KEYS[14]
local mine, seen = tonumber(ARGV[1]), tonumber(redis.call('GET', EPOCH) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if not mine or mine < seen then return {0, seen} end
local kept, offset = tonumber(ARGV[2]), tonumber(ARGV[3])
if not kept or not offset then return redis.error_reply('ERR ringpost: kept or offset') end
local ids, metas = redis.call('ZRANGE', DEAD, offset, offset + 127), {}
for i, id in ipairs(ids) do metas[i] = meta_of(id) or false end
redis.call('SET', EPOCH, string.format('%.0f', mine))
-- Among the counts, where a version before wrote it, others take it for a count that is damaged.
local damaged = redis.call('HGET', KEYS[10], 'damaged_last')
if damaged then
  redis.call('SET', KEYS[17], damaged)
  redis.call('HDEL', KEYS[10], 'damaged_last')
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local looked_at = tonumber(redis.call('HGET', KEYS[10], 'watched_at') or '')
local passed = is_count(looked_at) and math.min(math.max(now - looked_at, 0), 60000) or 0
local at = watched() + passed
redis.call('HSET', KEYS[10], 'watched', string.format('%.0f', at), 'watched_at', string.format('%.0f', now))
local removed, left = 0, 0
for i, id in ipairs(ids) do
  local meta = metas[i]
  if meta and meta[1] ~= 'D' then
    -- It lives, in another place.
    redis.call('ZREM', DEAD, id)
  elseif meta and not (is_count(meta[15]) and meta[15] <= at) then
    -- It died under a version before, or that account was lost: from now on.
    meta[15], left = at, left + 1
    redis.call('HSET', META, id, cmsgpack.pack(meta))
  elseif meta and at - meta[15] < kept then
    left = left + 1
  elseif remove_dead(id, meta, now) then
    removed = removed + 1
  end
end
if removed > 0 then tally('purged', removed) end
return {1, removed, #ids == 128 and offset + left or 0}
