-- Adds items, each once by its id (Q2), while there is room (Q14).
-- KEYS of the queue    ARGV random, capacity, channel, then for each: id, owner, priority, max_attempts, delay_ms, expires_in_ms, body
-- {generation, code, ..., announced (-1: there was nothing to say)}: 1 added | 0 is there | 2 was completed | -1 no room
check_keys()
local READY, AGES, SCHED, META, BODY = KEYS[1], KEYS[2], KEYS[3], KEYS[8], KEYS[9]
local DONE, OUTCOME, GENERATION, PAST, PAST_AT = KEYS[11], KEYS[12], KEYS[13], KEYS[15], KEYS[16]
local items = (#ARGV - 3) / 7
if items ~= math.floor(items) or items < 1 or items > 64 then return redis.error_reply('ERR ringpost: 1 to 64 items') end
local capacity = tonumber(ARGV[2])
for i = 0, items - 1 do
  local at = 3 + i * 7
  local priority, attempts, delay, expires = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  if not priority or priority < 0 or priority > 9 or not attempts or attempts < 1 or not delay or delay < 0 or not expires or expires < 0 then
    return redis.error_reply('ERR ringpost: an item is not sound')
  end
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local generation = redis.call('GET', GENERATION)
if not generation then
  generation = ARGV[1]
  redis.call('SET', GENERATION, generation)
end
local used = redis.call('HLEN', META) + redis.call('HLEN', OUTCOME)
local answer = {generation}
local added_ready = false
for i = 0, items - 1 do
  local at = 3 + i * 7
  local id, owner, priority, attempts = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  -- What is longer than a hundred years is no number of milliseconds that every answer can carry.
  local delay, expires = math.min(tonumber(ARGV[at + 5]), 4398046511104), math.min(tonumber(ARGV[at + 6]), 4398046511104)
  local outcome = redis.call('HGET', OUTCOME, id)
  local is_withdrawn = outcome and string.sub(outcome, 1, 1) == '\n'
  -- Its owner took it back, and offers it again: its place is that of the trace.
  local before = is_withdrawn and 1 or 0
  if redis.call('HEXISTS', META, id) == 1 then
    if is_withdrawn then
      redis.call('HDEL', OUTCOME, id)
      redis.call('ZREM', DONE, id)
      used = used - 1
    end
    answer[#answer + 1] = 0
  elseif outcome and not is_withdrawn then
    answer[#answer + 1] = 2
  elseif used - before >= capacity then
    answer[#answer + 1] = -1
  else
    used = used - before + 1
    -- First, as what only takes away is done where there is no room, and all after it: this ends the script there.
    redis.call('HSET', BODY, id, ARGV[at + 7])
    if is_withdrawn then
      redis.call('HDEL', OUTCOME, id)
      redis.call('ZREM', DONE, id)
    end
    local was_left = redis.call('HDEL', PAST, id) == 1
    redis.call('ZREM', PAST_AT, id)
    local sequence = next_sequence()
    -- state, priority, attempts, max_attempts, created, expires, owner, token, worker, reason
    local meta = {delay > 0 and 'S' or 'R', priority, 0, attempts, now, expires > 0 and now + expires or 0, owner, '', '', ''}
    -- A worker that an earlier offer of it was left by may come back: it is to hear what becomes of this one.
    if was_left then meta[12] = 1 end
    -- 14: when it was due last, where it had to wait.
    if delay > 0 then meta[14] = now + delay end
    redis.call('HSET', META, id, cmsgpack.pack(meta))
    if delay > 0 then
      redis.call('ZADD', SCHED, now + delay, id)
    else
      redis.call('ZADD', READY, priority * 1099511627776 + sequence, id)
      redis.call('ZADD', AGES, sequence, id)
      added_ready = true
    end
    tally('enqueued', 1)
    answer[#answer + 1] = 1
  end
end
answer[#answer + 1] = added_ready and announce(ARGV[3], 'work') or -1
return answer
