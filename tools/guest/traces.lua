-- Loops that become machine code while they run, of which many are made, thrown away and made again.
local wrong, rounds = 0, tonumber(arg[1])
for round = 1, rounds do
    local source = string.format("local sum = 0 for i = 1, 300 do sum = sum + i * %d end return sum", round)
    if assert(loadstring(source))() ~= 45150 * round then wrong = wrong + 1 end
    if round % 16 == 0 and jit.status() then jit.flush() end
end
local bits, mixed, words = require("bit"), 1, {}
for i = 1, 2000000 do mixed = bits.bxor(bits.rol(mixed, 5), i * 2654435 % 2147483647) end
for i = 1, 20000 do words[#words + 1] = string.rep(string.char(97 + i % 26), i % 40) end
local text, found = table.concat(words), 0
for i = 1, 26 do found = found + #text:gsub(string.char(96 + i), "") end
local sum = 0.0
for i = 1, 2000000 do sum = sum + math.sqrt(i) / (i % 7 + 1) end
print("rounds " .. rounds)
print("wrong-" .. arg[2] .. " " .. wrong)
print("result-" .. arg[2] .. string.format(' "%d %d %.17g"', mixed, found, sum))
