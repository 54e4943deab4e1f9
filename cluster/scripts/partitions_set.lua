#!lua flags=allow-oom
-- An operator says how many partitions the work queue has, in the place of a number that was read before.
-- KEYS partitions    ARGV before (0: none, or what is none), number
-- 1 | 0: it is another by now
local before, number = tonumber(ARGV[1]), tonumber(ARGV[2])
if not before or not number or number < 1 or number > 256 or number % 1 ~= 0 then return redis.error_reply('ERR ringpost: before or number') end
local kept = redis.pcall('GET', KEYS[1])
-- As heartbeats take it.
kept = type(kept) == 'string' and string.match(kept, '^%d+$') and tonumber(kept) or 0
if not (kept >= 1 and kept <= 256) then kept = 0 end
if kept ~= before then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', number))
return 1
