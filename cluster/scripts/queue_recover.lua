-- Takes back the leases of workers that are gone and those whose time is over. By anybody, as often as one likes (L10).
-- What is kept of ended items for owners and workers that may come back is cut to its bounds, the oldest first: those of which their owners have
-- heard before the others.
-- KEYS of the queue    ARGV limit (at most 128), jitter_ms, random, dead_max, outcomes_max, past_max, lease_max_ms
-- {recovered, dead, outcomes dropped that their owners have not heard of}
check_keys()
local SCHED, HELD, TIMED, WORKERS, DEAD, META = KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local DONE, OUTCOME, PAST, PAST_AT = KEYS[11], KEYS[12], KEYS[15], KEYS[16]
local limit, jitter, random, dead_max = math.min(tonumber(ARGV[1]), 128), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local outcomes_max, past_max, lease_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if not outcomes_max or not past_max or not lease_max then return redis.error_reply('ERR ringpost: bounds') end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local now_text = string.format('%.0f', now)
local ids = redis.call('ZRANGEBYSCORE', TIMED, '-inf', now_text, 'LIMIT', 0, limit)
local gone, members = {}, {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now_text, 'LIMIT', 0, 8)) do
  local room = limit - #ids
  if room <= 0 then break end
  local held = redis.call('ZRANGEBYLEX', HELD, '[' .. worker .. '/', '(' .. worker .. '0', 'LIMIT', 0, room)
  for _, member in ipairs(held) do
    ids[#ids + 1] = string.sub(member, #worker + 2)
    members[#ids] = member
  end
  if #held < room then gone[#gone + 1] = worker end
end
local metas = {}
for i, id in ipairs(ids) do metas[i] = meta_of(id) or false end
-- A clock that was stepped back makes no lease last longer than the longest.
local last = string.format('%.0f', now + lease_max)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', TIMED, '(' .. last, '+inf', 'LIMIT', 0, 128)) do redis.call('ZADD', TIMED, last, id) end
for _, worker in ipairs(gone) do redis.call('ZREM', WORKERS, worker) end
local dead, died, recovered = redis.call('ZCARD', DEAD), 0, 0
for i, id in ipairs(ids) do
  local meta = metas[i]
  redis.call('ZREM', TIMED, id)
  if members[i] then redis.call('ZREM', HELD, members[i]) end
  if not meta then
    drop(id)
  -- A trace of a lease of which the item knows nothing, as where its owner offered it again: it stays where it is.
  elseif meta[1] == 'L' then
    redis.call('ZREM', HELD, meta[9] .. '/' .. id)
    -- 16: that worker may have read it.
    meta[8], meta[9], meta[10], meta[16] = '', '', 'its worker went away', nil
    -- That worker may have a copy, and ask for it.
    meta[12] = 1
    if meta[3] >= meta[4] and dead < dead_max then
      dead, died, meta[1], meta[15] = dead + 1, died + 1, 'D', watched()
      redis.call('ZADD', DEAD, now, id)
    else
      -- Recovered leases come back one after another, not as a herd (Q10); those that should be dead wait for room there.
      local delay = jitter > 0 and (random + i * 7919) % jitter or 0
      if meta[3] >= meta[4] then
        delay = 60000
        tally('dead_full', 1)
      end
      -- 11: it has waited its turn once, and comes before what came later.
      recovered, meta[1], meta[11], meta[14] = recovered + 1, 'S', 1, now + delay
      redis.call('ZADD', SCHED, meta[14], id)
    end
    redis.call('HSET', META, id, cmsgpack.pack(meta))
  end
end
if recovered > 0 then tally('recovered', recovered) end
if died > 0 then tally('died', died) end
-- The oldest of `keys[2]`, as many as it has beyond `max`, leave both.
local function cut(keys, max)
  local beyond = math.min(redis.call('ZCARD', keys[2]) - max, 128)
  if beyond <= 0 then return 0 end
  for _, id in ipairs(redis.call('ZRANGE', keys[2], 0, beyond - 1)) do redis.call('HDEL', keys[1], id) end
  redis.call('ZREMRANGEBYRANK', keys[2], 0, beyond - 1)
  return beyond
end
local heard = redis.call('ZCOUNT', DONE, '-inf', '(0')
local beyond = cut({OUTCOME, DONE}, outcomes_max)
local dropped = math.max(beyond - heard, 0)
if dropped > 0 then tally('outcomes_dropped', dropped) end
if beyond > dropped then tally('heard_dropped', beyond - dropped) end
cut({PAST, PAST_AT}, past_max)
return {recovered, died, dropped}
