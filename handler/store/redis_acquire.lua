-- Takes the lease of a session, by this server's clock.
-- KEYS: lease
-- ARGV: holder (one run of one server), its address, milliseconds of the lease, milliseconds to remember it for
-- Returns {'granted', token}, or {'held', address, milliseconds it still runs}.
local lease, holder, address = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local token, former, former_address, until_ms =
    unpack(redis.call('HMGET', lease, 'token', 'holder', 'address', 'until_ms'))
local running = token and tonumber(until_ms) > now_ms
-- A server that starts again under the same address need not wait for itself.
if running and former ~= holder and former_address ~= address then
    return {'held', former_address, tonumber(until_ms) - now_ms}
end
if not running or former ~= holder then
    -- The clock's microseconds, so that tokens still grow where an old lease has been forgotten.
    token = string.format('%.0f', math.max(time[1] * 1000000 + time[2], tonumber(token or '0') + 1))
    redis.call('HSET', lease, 'token', token, 'holder', holder, 'address', address, 'sequence', '0')
end
redis.call('HSET', lease, 'until_ms', string.format('%.0f', now_ms + ARGV[3]))
redis.call('PEXPIRE', lease, ARGV[4])
return {'granted', token}
