-- A lease by its token runs for so long from now, whatever it was before.
-- KEYS of the queue    ARGV id, token, lease_ms
-- 1 | 0 not yours
check_keys()
local HELD, TIMED = KEYS[4], KEYS[5]
local id, lease = ARGV[1], tonumber(ARGV[3])
if not lease or lease < 0 then return redis.error_reply('ERR ringpost: lease') end
local meta = meta_of(id)
if meta == false then drop(id) end
if not meta or meta[1] ~= 'L' or meta[8] ~= ARGV[2] then
  tally('stale', 1)
  return 0
end
local t = redis.call('TIME')
redis.call('ZREM', HELD, meta[9] .. '/' .. id)
redis.call('ZADD', TIMED, tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) + lease, id)
return 1
