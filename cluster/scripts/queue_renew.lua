-- A worker lives: all its leases here go on (Q19). KEYS of the queue    ARGV random, worker, worker_ttl_ms
-- generation
local WORKERS, GENERATION = KEYS[6], KEYS[13]
local t = redis.call('TIME')
local generation = redis.call('GET', GENERATION)
if not generation then
  generation = ARGV[1]
  redis.call('SET', GENERATION, generation)
end
-- One that was swept meanwhile has no leases and needs no entry.
redis.call('ZADD', WORKERS, 'XX', tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) + tonumber(ARGV[3]), ARGV[2])
return generation
