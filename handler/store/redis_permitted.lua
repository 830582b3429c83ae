-- Tries each command that sessions need, so that none is missing in the midst of a script that has begun to write.
-- KEYS: one that is there for this alone
-- Returns the names of those that the user may not use.
local key = KEYS[1]
local needed = {
    {'DEL', key}, {'EXISTS', key}, {'GET', key}, {'SET', key, ''}, {'PEXPIRE', key, '1000'},
    {'HDEL', key, 'a'}, {'HGET', key, 'a'}, {'HGETALL', key}, {'HMGET', key, 'a'}, {'HSET', key, 'a', ''},
    {'LLEN', key}, {'LRANGE', key, '0', '0'}, {'LTRIM', key, '0', '0'}, {'RPUSH', key, ''},
    {'ZADD', key, '0', 'a'}, {'ZCARD', key}, {'ZRANGEBYLEX', key, '-', '+'}, {'ZRANGEBYSCORE', key, '0', '0'},
    {'ZREM', key, 'a'}, {'ZSCORE', key, 'a'}, {'SCAN', '0'}, {'TIME'},
}
local denied = {}
for _, command in ipairs(needed) do
    local result = redis.pcall(unpack(command)) -- of which most fail because the key holds something else
    local error = tostring(type(result) == 'table' and result.err or '')
    if string.find(error, 'no permissions', 1, true) or string.find(error, "can't run this command", 1, true) then
        denied[#denied + 1] = command[1]
    end
end
redis.pcall('DEL', key)
return denied
