#!lua flags=allow-oom
-- The leader forgets nodes that were not seen for long. Fenced.
-- KEYS epoch, members, nodes    ARGV epoch, older_than_ms
-- {1, forgotten} | {0, epoch}
local mine, seen = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[1]) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if not mine or mine < seen then return {0, seen} end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - tonumber(ARGV[2])), 'LIMIT', 0, 64)
redis.call('SET', KEYS[1], string.format('%.0f', mine))
for _, node in ipairs(old) do
  redis.call('ZREM', KEYS[2], node)
  redis.call('HDEL', KEYS[3], node)
end
return {1, #old}
