#!lua flags=allow-oom
-- Takes the lease when nobody holds it, with an epoch above all that were seen (L1): epoch and lease in one step.
-- KEYS leader, epoch    ARGV incarnation, floor, ttl_ms, channel ('': nobody is told yet)
-- {1, epoch, announced (-1: nobody is told)} | {0, holder, remaining_ms}
local floor, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
if not floor or not ttl or floor < 0 or ttl < 1 then return redis.error_reply('ERR ringpost: floor or ttl') end
local holder = redis.call('GET', KEYS[1])
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (epoch >= 0 and epoch <= 9007199254740991) then epoch = 0 end
if holder then
  local remaining = redis.call('PTTL', KEYS[1])
  -- A lease without an end, or one far longer than ours: the server's clock was stepped back. It may cost time, not for ever (L8).
  if remaining < 0 or remaining > ttl * 4 then redis.call('PEXPIRE', KEYS[1], ttl) end
  return {0, holder, remaining}
end
epoch = math.max(epoch, floor) + 1
if epoch > 9007199254740991 then return redis.error_reply('ERR ringpost: no epoch is left') end
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[2], text)
redis.call('SET', KEYS[1], ARGV[1] .. '/' .. text, 'PX', ttl)
return {1, epoch, ARGV[4] ~= '' and announce(ARGV[4], 'elected ' .. ARGV[1] .. '/' .. text) or -1}
