-- Whether the queue takes writes: a server that only answers (out of memory, without replicas, read-only, with a full disk) fails here.
-- KEYS of the queue    ARGV random
-- generation
local GENERATION = KEYS[13]
local generation = redis.call('GET', GENERATION) or ARGV[1]
redis.call('SET', GENERATION, generation)
return generation
