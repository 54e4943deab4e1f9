-- Promotes what is due, then leases by priority; each eighth lease takes the oldest, so that none starves (Q11).
-- Attempts count here, so that an item that kills its worker counts (Q6).
-- A lease's token says when its item was enqueued: what its owner took back before it was offered again is told apart by that.
-- KEYS of the queue    ARGV random, worker, count, token, worker_ttl_ms, lease_ms (0: as long as the worker lives), dead_max, bytes_max,
-- data_bytes_max: the same once it is unpacked
-- {generation, now_ms, {id, owner, priority, attempts, max_attempts, created_ms, scheduled_ms, expires_ms, token, body}, ...}
check_keys()
local READY, AGES, SCHED, HELD, TIMED, WORKERS, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local META, BODY, GENERATION = KEYS[8], KEYS[9], KEYS[13]
local worker, count, token = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local worker_ttl, lease_ms, dead_max, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local data_bytes_max = tonumber(ARGV[9])
if not count or count < 1 or count > 64 or not worker_ttl or worker_ttl < 0 or not lease_ms or lease_ms < 0 or not dead_max or not bytes_max or
  not data_bytes_max then
  return redis.error_reply('ERR ringpost: count, times or bounds')
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local now_text = string.format('%.0f', now)
-- All metadata is read before the first write: damage ends the script while nothing has changed (Q8).
local due, due_meta = redis.call('ZRANGEBYSCORE', SCHED, '-inf', now_text, 'LIMIT', 0, 128), {}
for i, id in ipairs(due) do
  due_meta[i] = meta_of(id) or false
end
local generation = redis.call('GET', GENERATION)
if not generation then
  generation = ARGV[1]
  redis.call('SET', GENERATION, generation)
end
local dead = redis.call('ZCARD', DEAD)
local function bury(id, meta, reason)
  if dead >= dead_max then
    -- No room: it waits, out of every worker's way, and is counted (Q12).
    meta[1], meta[14] = 'S', now + 60000
    redis.call('ZADD', SCHED, meta[14], id)
    tally('dead_full', 1)
  else
    dead = dead + 1
    meta[1], meta[10], meta[15] = 'D', reason, watched()
    redis.call('ZADD', DEAD, now, id)
    tally('died', 1)
  end
  redis.call('HSET', META, id, cmsgpack.pack(meta))
end
for i, id in ipairs(due) do
  local meta = due_meta[i]
  redis.call('ZREM', SCHED, id)
  if meta then
    if meta[3] >= meta[4] then
      bury(id, meta, meta[10] ~= '' and meta[10] or 'too many attempts')
    else
      local sequence = meta[11] and 0 or next_sequence()
      meta[1], meta[11] = 'R', nil
      redis.call('HSET', META, id, cmsgpack.pack(meta))
      redis.call('ZADD', READY, meta[2] * 1099511627776 + sequence, id)
      redis.call('ZADD', AGES, sequence, id)
    end
  else
    drop(id)
  end
end
-- What a body's head says that it unpacks to. A head that lies is not believed by who unpacks it.
local function data_bytes_of(body)
  local a, b, c, d = string.byte(body, 3, 6)
  return d and ((a * 256 + b) * 256 + c) * 256 + d or 0
end
local answer, leased, bytes, data_bytes = {generation, now}, 0, 0, 0
for _ = 1, count + 32 do
  if leased >= count or bytes >= bytes_max or data_bytes >= data_bytes_max then break end
  local turn = tally('turns', 1)
  local first = redis.call('ZRANGE', turn % 8 == 0 and AGES or READY, 0, 0)
  local id = first[1]
  if not id then break end
  -- What would make the answer too long comes alone, in the next call.
  local size = redis.call('HSTRLEN', BODY, id)
  local is_too_long = leased > 0 and bytes + size > bytes_max
  local body = is_too_long and '' or redis.call('HGET', BODY, id)
  local data_size = body and data_bytes_of(body) or 0
  if is_too_long or leased > 0 and data_bytes + data_size > data_bytes_max then
    -- Its turn is not lost: the next call begins with it.
    tally('turns', -1)
    break
  end
  redis.call('ZREM', READY, id)
  redis.call('ZREM', AGES, id)
  local meta = meta_of(id)
  -- What has no content is nothing to a worker: its owner offers it again.
  if not meta or not body then
    drop(id)
  elseif meta[6] > 0 and now >= meta[6] then
    bury(id, meta, 'expired')
  else
    leased = leased + 1
    bytes, data_bytes = bytes + size, data_bytes + data_size
    meta[1], meta[3], meta[8], meta[9] = 'L', meta[3] + 1, token .. ':' .. leased .. string.format(':%.0f', meta[5]), worker
    redis.call('HSET', META, id, cmsgpack.pack(meta))
    if lease_ms > 0 then
      redis.call('ZADD', TIMED, now + lease_ms, id)
    else
      redis.call('ZADD', HELD, 0, worker .. '/' .. id)
    end
    answer[#answer + 1] = {id, meta[7], meta[2], meta[3], meta[4], meta[5], meta[14] or meta[5], meta[6], meta[8], body}
  end
end
if leased > 0 then
  if lease_ms == 0 then redis.call('ZADD', WORKERS, now + worker_ttl, worker) end
  tally('leased', leased)
end
return answer
