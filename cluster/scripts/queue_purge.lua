-- Removes dead letters, by an operator's word: those named, or the oldest 128. KEYS of the queue    ARGV id... (none: the oldest)
-- number removed
check_keys()
local ids, metas = {}, {}
for i = 1, math.min(#ARGV, 128) do ids[i] = ARGV[i] end
if #ids == 0 then ids = redis.call('ZRANGE', KEYS[7], 0, 127) end
for i, id in ipairs(ids) do metas[i] = meta_of(id) or false end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local removed = 0
for i, id in ipairs(ids) do
  if remove_dead(id, metas[i], now) then removed = removed + 1 end
end
if removed > 0 then tally('purged', removed) end
return removed
