-- GCRA: `cost` units of a flow that has one unit each `interval_us` and may be `burst` units ahead.
-- KEYS tat    ARGV interval_us, burst, cost
-- {1, 0} passes | {0, retry_after_us}
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not interval or interval <= 0 or not burst or burst < 1 or not cost or cost < 1 or cost > burst then
  return redis.error_reply('ERR ringpost: interval, burst or cost')
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') or 0, now)
-- A theoretical arrival time far ahead comes from a clock that was stepped back.
tat = math.min(tat, now + interval * burst)
local next = tat + interval * cost
local ahead = next - now - interval * burst
if ahead > 0 then return {0, math.ceil(ahead)} end
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000) + 1)
return {1, 0}
