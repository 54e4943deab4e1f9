-- Reserves moments of a flow that all nodes share: each moment is given once. The flow has `units` in each `per_us`, evenly spaced but for
-- a burst, and runs at most `horizon_us` ahead.
-- KEYS tat    ARGV units, per_us, burst, wanted, horizon_us
-- {count, first_in_us} the first may lie in the past | {0, retry_after_us}
local units, per, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted, horizon = tonumber(ARGV[4]), tonumber(ARGV[5])
if not units or units < 1 or not per or per < 1 or not burst or burst < 1 or not wanted or wanted < 1 or not horizon or horizon < 0 then
  return redis.error_reply('ERR ringpost: units, per, burst, wanted or horizon')
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local from = now - math.floor((burst - 1) * per / units)
local tat = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
-- What lies further ahead than any reservation goes comes from a clock that was stepped back.
if tat > now + horizon + math.ceil(per / units) then tat = now end
local first = math.max(tat, from)
if first > now + horizon then return {0, first - now - horizon} end
local count = math.min(wanted, math.floor((now + horizon - first) * units / per) + 1)
local next = first + math.ceil(count * per / units)
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - from) / 1000) + 1)
return {count, first - now}
