#!lua flags=allow-oom
-- A node is not emptied after all: others may rely on it again. What another life of its process wrote stays.
-- KEYS drains    ARGV node, incarnation
-- 1 | 0: it was not said
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
