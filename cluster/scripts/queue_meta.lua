-- In front of each script that uses one of these.
local function is_count(value)
  return type(value) == 'number' and value >= 0 and value <= 9007199254740991
end
-- An item's metadata: nil where there is none, false where it cannot be read or is none.
local function meta_of(id)
  local packed = redis.call('HGET', KEYS[8], id)
  if not packed then return nil end
  local is_read, meta = pcall(cmsgpack.unpack, packed)
  -- What is no name no answer could carry, either.
  if not is_read or type(meta) ~= 'table' or #id > 128 or not string.match(id, '^[%w.:_-]+$') then return false end
  -- One that no answer can carry would have no lease answered.
  for i = 2, 6 do if not is_count(meta[i]) then return false end end
  if not is_count(meta[14]) then meta[14] = nil end
  for i = 8, 10 do if type(meta[i]) ~= 'string' then return false end end
  local is_sound = (meta[1] == 'R' or meta[1] == 'S' or meta[1] == 'L' or meta[1] == 'D') and type(meta[7]) == 'string'
    and string.match(meta[7], '^[%w._-]+$') and #meta[7] <= 64 and meta[2] <= 9
  return is_sound and meta or false
end
-- What is damaged is in no place any more: its owner, which has the original, offers it again.
local function drop(id)
  for _, key in ipairs({1, 2, 3, 5, 7}) do redis.call('ZREM', KEYS[key], id) end
  redis.call('HDEL', KEYS[9], id)
  if redis.call('HDEL', KEYS[8], id) == 1 then redis.call('HINCRBY', KEYS[10], 'damaged', 1) end
end
-- Where the outcomes stand of which their owners have heard, and which are kept for late workers alone: before all others, which lets them go first.
local function heard_at(now)
  return now - 4398046511104
end
