-- In front of each script that uses one of these.
local function is_count(value)
  return type(value) == 'number' and value >= 0 and value <= 9007199254740991
end
-- Adds to a count, and returns it. One that is damaged begins anew, which is counted: a script that came to its end at it had written the rest.
local function tally(name, by)
  local counted = redis.pcall('HINCRBY', KEYS[10], name, by)
  if type(counted) == 'number' then return counted end
  redis.call('HSET', KEYS[10], name, string.format('%.0f', by))
  if name ~= 'counters_reset' then tally('counters_reset', 1) end
  return by
end
-- The next place in the order of coming: below 2^40, with a priority before it exact. A count that is damaged goes on behind the latest that waits.
local function next_sequence()
  local sequence = redis.pcall('HINCRBY', KEYS[10], 'sequence', 1)
  if type(sequence) == 'number' and sequence > 0 and sequence < 1099511627776 then return sequence end
  local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2] or '0') or 0
  if not (last >= 0 and last < 1099511627775) then last = 0 end
  redis.call('HSET', KEYS[10], 'sequence', string.format('%.0f', last + 1))
  tally('counters_reset', 1)
  return last + 1
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
  if redis.call('HDEL', KEYS[8], id) == 1 then
    tally('damaged', 1)
    redis.call('SET', KEYS[17], id)
  end
end
-- Where the outcomes stand of which their owners have heard, and which are kept for late workers alone: before all others, which lets them go first.
local function heard_at(now)
  return now - 4398046511104
end
-- For how long this partition has been watched, in milliseconds, as leaders have counted it look by look (`queue_retire`).
local function watched()
  local ms = tonumber(redis.call('HGET', KEYS[10], 'watched') or '')
  return is_count(ms) and ms or 0
end
-- An item that is in no place any more leaves the queue for good. A worker that it was left by, and that may come back, is not told that nobody ever
-- heard of it: its owner may offer it again.
local function forget(id, meta, now)
  redis.call('HDEL', KEYS[8], id)
  redis.call('HDEL', KEYS[9], id)
  if meta and meta[12] then
    redis.call('HSET', KEYS[15], id, '\n' .. meta[7] .. '\npurged')
    redis.call('ZADD', KEYS[16], now, id)
  end
end
-- A dead letter leaves the queue for good; false: it is none.
local function remove_dead(id, meta, now)
  if redis.call('ZREM', KEYS[7], id) == 0 then return false end
  forget(id, meta, now)
  return true
end
-- Each key is of its type, or the script ends here, before its first write: what is written by then is not taken back (Q8).
local function check_keys()
  local reads = {'ZCARD', 'ZCARD', 'ZCARD', 'ZCARD', 'ZCARD', 'ZCARD', 'ZCARD', 'HLEN', 'HLEN', 'HLEN', 'ZCARD', 'HLEN', 'STRLEN', 'STRLEN', 'HLEN', 'ZCARD', 'STRLEN'}
  for i, key in ipairs(KEYS) do redis.call(reads[i], key) end
end
-- Whether a key has a member. Of one that is damaged that is not to be known.
local function has(key, member)
  local score = redis.pcall('ZSCORE', key, member)
  return score and true or false
end
-- An item that is in none of the places of its state, as after the loss of their keys, goes there again: no worker would ever meet it. True: it
-- did. A lease that nothing ends is over.
local function put_back(id, meta, now)
  local state = meta[1]
  if state == 'R' then
    if has(KEYS[1], id) and has(KEYS[2], id) then return false end
    -- One of these keys may be damaged while another was lost: whoever asks is told all the same where the others are.
    local is_numbered, sequence = pcall(next_sequence)
    if not is_numbered then return false end
    redis.pcall('ZADD', KEYS[1], meta[2] * 1099511627776 + sequence, id)
    redis.pcall('ZADD', KEYS[2], sequence, id)
  elseif state == 'S' then
    if has(KEYS[3], id) then return false end
    redis.call('ZADD', KEYS[3], now, id)
  elseif state == 'L' then
    -- A lease that lasts as long as its worker, of whom nobody knows any more, would never end.
    if has(KEYS[5], id) or has(KEYS[4], meta[9] .. '/' .. id) and has(KEYS[6], meta[9]) then return false end
    redis.call('ZADD', KEYS[5], now, id)
  else
    if has(KEYS[7], id) then return false end
    redis.call('ZADD', KEYS[7], now, id)
  end
  return true
end
