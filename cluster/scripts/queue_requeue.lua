-- Dead letters get their attempts back and go to the ready ones. KEYS of the queue    ARGV channel, id... (none: the oldest 128)
-- {number requeued, announced (-1: there was nothing to say)}
check_keys()
local READY, AGES, DEAD, META = KEYS[1], KEYS[2], KEYS[7], KEYS[8]
if #ARGV > 129 then return redis.error_reply('ERR ringpost: at most 128 ids') end
local ids = {}
for i = 2, #ARGV do ids[#ids + 1] = ARGV[i] end
local is_all = #ids == 0
if is_all then ids = redis.call('ZRANGE', DEAD, 0, 127) end
local metas = {}
for i, id in ipairs(ids) do metas[i] = meta_of(id) end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local moved = 0
for i, id in ipairs(ids) do
  local meta = metas[i]
  -- Of the oldest each goes, or those that cannot be read would be in the way of all others.
  if meta == false or not meta and is_all then drop(id) end
  if meta and redis.call('ZREM', DEAD, id) == 1 then
    local sequence = next_sequence()
    meta[1], meta[3], meta[6], meta[10], meta[14], meta[15], meta[16] = 'R', 0, 0, '', now, nil, nil
    redis.call('HSET', META, id, cmsgpack.pack(meta))
    redis.call('ZADD', READY, meta[2] * 1099511627776 + sequence, id)
    redis.call('ZADD', AGES, sequence, id)
    moved = moved + 1
  end
end
return {moved, moved > 0 and announce(ARGV[1], 'work') or -1}
