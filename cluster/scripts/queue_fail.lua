-- Ends one lease without success: again after a delay, or dead. What goes by time and not by attempts gives its attempt back (Q6).
-- What nobody can read does so for `unread_max_ms` (empty: it was read) since the first look that found it so, and counts from then on.
-- With a cap the delay is that of the first attempt, doubled with each up to the cap, and a part of that by chance, all of it at most (Q10).
-- KEYS of the queue    ARGV id, token, retries, delay_ms, counts, reason, dead_max, unread_max_ms, cap_ms (0: the delay as it is),
--                      chance (0 to 1023 of 1024)
-- 1 waits | 2 dead | 0 not yours
check_keys()
local SCHED, HELD, TIMED, DEAD, META = KEYS[3], KEYS[4], KEYS[5], KEYS[7], KEYS[8]
local id, token, delay, dead_max = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[7])
local cap, chance = tonumber(ARGV[9]), tonumber(ARGV[10])
if not delay or delay < 0 or not dead_max or not cap or cap < 0 or not chance then return redis.error_reply('ERR ringpost: delay') end
delay = math.min(delay, 4398046511104)
local meta = meta_of(id)
if meta == false then drop(id) end
if not meta or meta[1] ~= 'L' or meta[8] ~= token then
  tally('stale', 1)
  return 0
end
if cap > 0 then delay = math.floor(math.min(cap, delay * 2 ^ math.min(meta[3] - 1, 64)) * (chance + 1) / 1024) end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
redis.call('ZREM', HELD, meta[9] .. '/' .. id)
redis.call('ZREM', TIMED, id)
local counts, unread_max = ARGV[5] ~= '0', tonumber(ARGV[8])
if unread_max then
  meta[16] = is_count(meta[16]) and math.min(meta[16], now) or now
  counts = now - meta[16] >= unread_max
else
  meta[16] = nil
end
if not counts then meta[3] = math.max(meta[3] - 1, 0) end
meta[8], meta[9], meta[10] = '', '', ARGV[6]
local answer = 1
local is_dead = ARGV[3] == '0' or meta[3] >= meta[4]
if is_dead and redis.call('ZCARD', DEAD) < dead_max then
  meta[1], meta[15], answer = 'D', watched(), 2
  redis.call('ZADD', DEAD, now, id)
  tally('died', 1)
else
  if is_dead then
    -- No room among the dead: it waits with its attempts used up, so that it goes there and to no worker.
    meta[3], delay = math.max(meta[3], meta[4]), 60000
    tally('dead_full', 1)
  end
  meta[1], meta[14] = 'S', now + delay
  redis.call('ZADD', SCHED, meta[14], id)
  tally('failed', 1)
end
redis.call('HSET', META, id, cmsgpack.pack(meta))
return answer
