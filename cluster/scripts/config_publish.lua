-- Publishes a config. 'next': as that version, if `expected` is still current.
-- 'restore': as that very version, where Valkey knows only earlier ones (it lost data), or has it without a seal.
-- KEYS configs    ARGV mode, version, hash, author, text, of, expected, history_max, channel, seal, seal under the expected number
-- {1, version} published | {3, version} so too, and nobody was told | {2, version} is current already | {0, version} something else is current
local number, keep = tonumber(ARGV[2]), tonumber(ARGV[8])
if not number or not keep or keep < 2 then return redis.error_reply('ERR ringpost: version or history') end
local current = redis.call('HMGET', KEYS[1], 'current', 'hash')
local version = tonumber(current[1] or '0') or 0
-- What is no version is damage, as good as lost.
if not (version >= 0 and version <= 9007199254740991) then version = 0 end
local function published(number, hash)
  return announce(ARGV[9], 'config ' .. number .. ' ' .. hash) == 1 and 1 or 3
end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
if ARGV[1] == 'restore' then
  if version == number and current[2] == ARGV[3] and ARGV[10] ~= '' and redis.call('HEXISTS', KEYS[1], 's' .. current[1]) == 0 then
    -- A program that did not sign numbers has pushed it.
    redis.call('HSET', KEYS[1], 's' .. current[1], ARGV[10])
    return {published(current[1], ARGV[3]), version}
  end
  if version >= number then return {0, version} end
  version = number
else
  if tonumber(ARGV[7]) ~= version then return {0, version} end
  -- What nodes would refuse as it is is pushed anew.
  local is_sealed = version > 0 and (redis.call('HGET', KEYS[1], 's' .. current[1]) or '') == ARGV[11]
  if is_sealed and current[2] == ARGV[3] then return {2, version} end
  if number <= version then return redis.error_reply('ERR ringpost: version') end
  version = number
end
local text = string.format('%.0f', version)
-- Fields of a version: v<number>, and s<number>, by which the number itself is signed. Everything else in this hash is a name.
local blob = ARGV[3] .. '\n' .. ARGV[4] .. '\n' .. string.format('%.0f', now) .. '\n' .. ARGV[6] .. '\n' .. ARGV[5]
redis.call('HSET', KEYS[1], 'current', text, 'hash', ARGV[3], 'v' .. text, blob, 's' .. text, ARGV[10])
local versions = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local held = string.match(field, '^v(%d+)$')
  if held then versions[#versions + 1] = tonumber(held) end
end
table.sort(versions)
for i = 1, #versions - keep do
  local old = string.format('%.0f', versions[i])
  redis.call('HDEL', KEYS[1], 'v' .. old, 's' .. old)
end
return {published(text, ARGV[3]), version}
