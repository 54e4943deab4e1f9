-- Sets how often nodes ask for a config when they hear of none. KEYS configs    ARGV poll_ms
redis.call('HSET', KEYS[1], 'poll_ms', ARGV[1])
return 1
