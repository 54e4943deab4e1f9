-- Publishes a config. 'next': as the version after all that were seen, if `expected` is still current ('' asks nothing).
-- 'restore': as that very version, where Valkey knows only earlier ones (it lost data).
-- KEYS configs    ARGV mode, floor_or_version, hash, author, text, of, expected, history_max, channel
-- {1, version} published | {2, version} is current already | {0, version} something else is current
local number, keep = tonumber(ARGV[2]), tonumber(ARGV[8])
if not number or not keep or keep < 2 then return redis.error_reply('ERR ringpost: version or history') end
local current = redis.call('HMGET', KEYS[1], 'current', 'hash')
local version = tonumber(current[1] or '0')
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
if ARGV[1] == 'restore' then
  if version >= number then return {0, version} end
  version = number
else
  if ARGV[7] ~= '' and tonumber(ARGV[7]) ~= version then return {0, version} end
  if version > 0 and current[2] == ARGV[3] then return {2, version} end
  version = math.max(version, number) + 1
end
local text = string.format('%.0f', version)
-- Fields of a version: v<number>. Everything else in this hash is a name.
local blob = ARGV[3] .. '\n' .. ARGV[4] .. '\n' .. string.format('%.0f', now) .. '\n' .. ARGV[6] .. '\n' .. ARGV[5]
redis.call('HSET', KEYS[1], 'current', text, 'hash', ARGV[3], 'v' .. text, blob)
local versions = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local held = string.match(field, '^v(%d+)$')
  if held then versions[#versions + 1] = tonumber(held) end
end
table.sort(versions)
for i = 1, #versions - keep do redis.call('HDEL', KEYS[1], 'v' .. string.format('%.0f', versions[i])) end
redis.call('PUBLISH', ARGV[9], 'config ' .. text .. ' ' .. ARGV[3])
return {1, version}
