-- Ends leases for good, each by its token (Q3, Q4). The outcome stays until the owner has settled it (Q18).
-- KEYS of the queue    ARGV random, channel_prefix, keep_ms, then for each: id, token, result
-- {generation, code, record, ..., announced (-1: there was nothing to say)}: 1 completed | 2 was completed by this token | 3 its owner has settled it, with whom it does not know any more |
-- 0 not yours, and the record that says whose it is, as far as one can be long ('': nobody's yet, it is in the queue) | -1 was never heard of
-- Of an item that a worker left to its fate the record is kept for longer: that worker may come back with its copy.
check_keys()
local HELD, TIMED, META, BODY, DONE, OUTCOME, GENERATION = KEYS[4], KEYS[5], KEYS[8], KEYS[9], KEYS[11], KEYS[12], KEYS[13]
local PAST, PAST_AT = KEYS[15], KEYS[16]
local items = (#ARGV - 3) / 3
if items ~= math.floor(items) or items < 1 or items > 64 then return redis.error_reply('ERR ringpost: 1 to 64 items') end
local keep = tonumber(ARGV[3])
if not keep then return redis.error_reply('ERR ringpost: keep') end
local metas = {}
for i = 0, items - 1 do
  metas[i] = meta_of(ARGV[4 + i * 3])
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local generation = redis.call('GET', GENERATION)
if not generation then
  generation = ARGV[1]
  redis.call('SET', GENERATION, generation)
end
local answer, told = {generation}, {}
local function say(code, record)
  answer[#answer + 1] = code
  answer[#answer + 1] = string.sub(record or '', 1, 1024)
end
for i = 0, items - 1 do
  local id, token, result, meta = ARGV[4 + i * 3], ARGV[5 + i * 3], ARGV[6 + i * 3], metas[i]
  if meta == false then drop(id) end
  -- One id twice in one call: the second finds the first's outcome.
  if meta and redis.call('HEXISTS', META, id) == 0 then meta = false end
  if meta and meta[1] == 'L' and meta[8] == token then
    redis.call('ZREM', HELD, meta[9] .. '/' .. id)
    redis.call('ZREM', TIMED, id)
    redis.call('HDEL', META, id)
    redis.call('HDEL', BODY, id)
    local record = token .. '\n' .. meta[7] .. '\n' .. result
    redis.call('HSET', OUTCOME, id, record)
    redis.call('ZADD', DONE, now, id)
    if meta[12] then
      redis.call('HSET', PAST, id, record)
      redis.call('ZADD', PAST_AT, now, id)
    end
    tally('completed', 1)
    local lines = told[meta[7]] or {}
    lines[#lines + 1] = id .. ' ' .. result
    told[meta[7]] = lines
    say(1)
  elseif meta then
    if not meta[12] then
      -- That worker may keep its copy, and asks again.
      meta[12] = 1
      redis.call('HSET', META, id, cmsgpack.pack(meta))
    end
    tally('stale', 1)
    say(0)
  else
    local record = redis.call('HGET', OUTCOME, id) or redis.call('HGET', PAST, id)
    if not record then
      say(-1)
    elseif string.match(record, '^\n[^\n]*\nended$') then
      say(3)
    -- A version before kept the token alone.
    elseif string.match(record, '^[^\n]*') == token then
      say(2)
    else
      tally('stale', 1)
      -- What is no record at all is one that nobody signed.
      say(0, record == '' and '\n' or record)
    end
  end
end
local announced = -1
for owner, lines in pairs(told) do
  local of_owner = announce(ARGV[2] .. owner, table.concat(lines, '\n'))
  announced = announced == 0 and 0 or of_owner
end
for _, range in ipairs({{'-inf', heard_at(now - keep), 'heard_dropped'}, {'0', now - keep, 'outcomes_dropped'}}) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DONE, range[1], string.format('%.0f', range[2]), 'LIMIT', 0, 32)) do
    redis.call('ZREM', DONE, id)
    redis.call('HDEL', OUTCOME, id)
    tally(range[3], 1)
  end
end
answer[#answer + 1] = announced
return answer
