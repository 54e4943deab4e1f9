-- One version whole, or the current one ('') unless the asker has that hash already.
-- KEYS configs    ARGV version, known_hash
-- {version, seal, blob} | {version, seal} not changed | {0} there is none
local version = ARGV[1]
if version == '' then
  local current = redis.call('HMGET', KEYS[1], 'current', 'hash')
  if not current[1] then return {0} end
  if not tonumber(current[1]) then return {0} end
  if current[2] == ARGV[2] then return {tonumber(current[1]), redis.call('HGET', KEYS[1], 's' .. current[1]) or ''} end
  version = current[1]
end
local blob = redis.call('HGET', KEYS[1], 'v' .. version)
if not blob then return {0} end
return {tonumber(version), redis.call('HGET', KEYS[1], 's' .. version) or '', blob}
