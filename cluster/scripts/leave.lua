-- A node leaves in order: it is no longer counted.
-- KEYS members, nodes    ARGV node, incarnation, channel
-- {1, announced} | {0, -1}
local record = redis.call('HGET', KEYS[2], ARGV[1])
if not record or string.match(record, '^([^\n]*)\n') ~= ARGV[2] then return {0, -1} end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
return {1, announce(ARGV[3], 'left ' .. ARGV[1])}
