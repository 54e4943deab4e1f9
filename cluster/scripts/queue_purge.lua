-- Removes dead letters, by an operator's word: those named, or the oldest 128. Of those named also what waits and was found to be read by nobody.
-- KEYS of the queue    ARGV id... (none: the oldest)
-- {dead letters removed, unread items removed}
check_keys()
local ids, metas = {}, {}
for i = 1, math.min(#ARGV, 128) do ids[i] = ARGV[i] end
if #ids == 0 then ids = redis.call('ZRANGE', KEYS[7], 0, 127) end
for i, id in ipairs(ids) do metas[i] = meta_of(id) or false end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local dead, unread = 0, 0
for i, id in ipairs(ids) do
  local meta = metas[i]
  if remove_dead(id, meta, now) then
    dead = dead + 1
  elseif meta and is_count(meta[16]) and (meta[1] == 'R' or meta[1] == 'S') and redis.call('HEXISTS', KEYS[8], id) == 1 then
    for _, key in ipairs({1, 2, 3}) do redis.call('ZREM', KEYS[key], id) end
    forget(id, meta, now)
    unread = unread + 1
  end
end
if dead + unread > 0 then tally('purged', dead + unread) end
return {dead, unread}
