-- Counts what was let through of a flow that all nodes share, and says for how long nothing more is. It is counted even beyond the
-- limit: it has happened.
-- KEYS tat    ARGV units, per_us, burst, cost
-- {closed_for_us} 0: more may pass
local units, per, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if not units or units < 1 or not per or per < 1 or not burst or burst < 1 or not cost or cost < 1 then
  return redis.error_reply('ERR ringpost: units, per, burst or cost')
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local ahead = math.floor(burst * per / units)
local tat = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
-- What all nodes let through before they heard of each other is owed; more than eight bursts come from a clock that was stepped back.
local next = math.min(math.max(tat, now), now + 8 * ahead) + math.ceil(cost * per / units)
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000) + 1)
-- Room for one more?
return {math.max(0, next + math.ceil(per / units) - now - ahead)}
