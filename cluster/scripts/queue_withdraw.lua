-- The owner takes items back that nobody holds: a lease by time that is over holds nothing, swept or not. That stays, as an outcome without a token, until the owner has it forgotten or enqueues the
-- item again: a worker whose lease ended and whose completion was lost is to hear that the item is not its own.
-- With 'ended' they are items that the owner has settled before the queue went back in time: with whom is forgotten, so the worker that asks
-- is told just that. What a worker of a version before was refused since then stays: it dropped its copy, which may have been the last.
-- KEYS of the queue    ARGV owner, 'withdrawn' or 'ended', id... (at most 128)
-- {code, ...}: 1 out | 0 it is leased, or another's | -1 unknown | 2 it stays
check_keys()
local PAST, PAST_AT = KEYS[15], KEYS[16]
local READY, AGES, SCHED, HELD, TIMED, DEAD, META, BODY, DONE, OUTCOME =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7], KEYS[8], KEYS[9], KEYS[11], KEYS[12]
if #ARGV > 130 then return redis.error_reply('ERR ringpost: at most 128 ids') end
local is_ended = ARGV[2] == 'ended'
local metas, ends = {}, {}
for i = 3, #ARGV do
  metas[i] = meta_of(ARGV[i])
  ends[i] = tonumber(redis.call('ZSCORE', TIMED, ARGV[i]) or '') or math.huge
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local answer = {}
for i = 3, #ARGV do
  local id, meta = ARGV[i], metas[i]
  if meta == false then drop(id) end
  if not meta or redis.call('HEXISTS', META, id) == 0 then
    answer[#answer + 1] = -1
  elseif meta[1] == 'L' and now < ends[i] or meta[7] ~= ARGV[1] then
    answer[#answer + 1] = 0
  elseif is_ended and meta[13] then
    answer[#answer + 1] = 2
  else
    for _, set in ipairs({READY, AGES, SCHED, TIMED, DEAD}) do redis.call('ZREM', set, id) end
    redis.call('ZREM', HELD, meta[9] .. '/' .. id)
    redis.call('HDEL', META, id)
    redis.call('HDEL', BODY, id)
    -- Not signed yet: its owner does that when it asks for it next (`queue_refuse`).
    local trace = '\n' .. meta[7] .. '\n' .. (is_ended and 'ended' or string.format('withdrawn %.0f', meta[5]))
    redis.call('HSET', OUTCOME, id, trace)
    redis.call('ZADD', DONE, heard_at(now), id)
    if not is_ended and (meta[12] or meta[1] == 'L') then
      -- A worker that it was left by may come back later than the owner has this forgotten.
      redis.call('HSET', PAST, id, trace)
      redis.call('ZADD', PAST_AT, now, id)
    end
    tally('withdrawn', 1)
    answer[#answer + 1] = 1
  end
end
return answer
