-- Sets how often nodes ask for a config when they hear of none. 'restore': where nothing else is said (Valkey lost data).
-- KEYS configs    ARGV poll_ms, mode
if ARGV[2] == 'restore' then return redis.call('HSETNX', KEYS[1], 'poll_ms', ARGV[1]) end
redis.call('HSET', KEYS[1], 'poll_ms', ARGV[1])
return 1
