#!lua flags=allow-oom
-- A node lives. Raises the epoch to what the node has accepted (L6) and answers with all that changes.
-- Another process of the node goes before this one for rival_ttl_ms after its last heartbeat: a Valkey that went back in time knows an
-- earlier one, which sends none.
-- KEYS members, nodes, leader, epoch, generation, configs, plan, shares, partitions
-- ARGV node, incarnation, floor, record, rival_ttl_ms, random, channel, partitions (0: it does not say)
-- {1, now_ms, epoch, leader, generation, config_version, config_hash, poll_ms, plan, shares, partitions, announced (-1: there was nothing to say)} |
-- {0, other_incarnation}
local floor, rival_ttl, proposed = tonumber(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[8])
if not floor or floor < 0 or not rival_ttl or not proposed then
  return redis.error_reply('ERR ringpost: floor, rival_ttl or partitions')
end
local before = redis.call('HGET', KEYS[2], ARGV[1])
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local started = now
local is_new = true
if before then
  local incarnation, at = string.match(before, '^([^\n]*)\n(%d+)\n')
  if incarnation == ARGV[2] then
    started, is_new = tonumber(at), false
  else
    local seen = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '')
    -- Either way: the server's clock may have been stepped back since.
    if incarnation and seen and math.abs(now - seen) < rival_ttl then return {0, incarnation} end
  end
end
local epoch = tonumber(redis.call('GET', KEYS[4]) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (epoch >= 0 and epoch <= 9007199254740991) then epoch = 0 end
if floor > epoch then
  epoch = floor
  redis.call('SET', KEYS[4], string.format('%.0f', epoch))
end
local generation = redis.call('GET', KEYS[5])
if not generation then
  generation = ARGV[6]
  redis.call('SET', KEYS[5], generation)
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. '\n' .. string.format('%.0f', started) .. '\n' .. ARGV[4])
local announced = is_new and announce(ARGV[7], 'joined ' .. ARGV[1]) or -1
local config = redis.call('HMGET', KEYS[6], 'current', 'hash', 'poll_ms')
local version, poll = tonumber(config[1] or '0') or 0, tonumber(config[3] or '0') or 0
-- What is no version is damage, as good as lost: nodes give it back.
if not (version >= 0 and version <= 9007199254740991) then version = 0 end
if not (poll >= 0 and poll <= 9007199254740991) then poll = 0 end
-- Kept from whoever says it first. What is no such number is damage, as good as lost; so is "8.0", which not all that read it take for one.
local partitions = redis.pcall('GET', KEYS[9])
partitions = type(partitions) == 'string' and string.match(partitions, '^%d+$') and tonumber(partitions) or 0
if not (partitions >= 1 and partitions <= 256) then
  partitions = proposed
  if proposed > 0 then redis.call('SET', KEYS[9], string.format('%.0f', proposed)) end
end
return {1, now, epoch, redis.call('GET', KEYS[3]) or '', generation, version, config[2] or '', poll,
  redis.call('GET', KEYS[7]) or '', redis.call('GET', KEYS[8]) or '', partitions, announced}
