-- Counts of one partition. KEYS of the queue
-- {now_ms, ready, scheduled, leased, dead, outcomes, those of which their owners have not heard, oldest_dead_ms, next_due_ms, oldest_ready_ms, the item found damaged last, counter, value, ...}
local t = redis.call('TIME')
local oldest = redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')
local due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
local meta = first and meta_of(first)
-- A version before wrote its name among the counts, where a leader moves it from (`queue_retire`).
local damaged = redis.call('HGET', KEYS[10], 'damaged_last') or redis.pcall('GET', KEYS[17])
local answer = {tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000), redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[3]),
  redis.call('ZCARD', KEYS[4]) + redis.call('ZCARD', KEYS[5]), redis.call('ZCARD', KEYS[7]), redis.call('HLEN', KEYS[12]), redis.call('ZCOUNT', KEYS[11], '0', '+inf'),
  tonumber(oldest[2] or '0'), tonumber(due[2] or '0'), meta and meta[5] or 0,
  type(damaged) == 'string' and damaged or ''}
local counters = redis.call('HGETALL', KEYS[10])
for i = 1, #counters, 2 do
  local count = tonumber(counters[i + 1])
  -- One that is damaged counts for nothing until it is counted on.
  if counters[i] ~= 'damaged_last' and string.match(counters[i], '^[%w_]+$') and count and count >= 0 then
    answer[#answer + 1] = counters[i]
    answer[#answer + 1] = math.min(count, 9000000000000000000)
  end
end
return answer
