# Reads lines `ROUND DEVICE CASE VALUE`; prints tables in Markdown. Variables: columns, cases, ratios ("a b,c d").
function median(list,    values, n, i, j, t) {
    n = split(list, values, " ")
    for (i = 2; i <= n; i++) {
        t = values[i] + 0
        for (j = i - 1; j > 0 && values[j] + 0 > t; j--) values[j + 1] = values[j]
        values[j + 1] = t
    }
    return n % 2 ? values[(n + 1) / 2] + 0 : (values[n / 2] + values[n / 2 + 1]) / 2
}

# What was measured of a device, in all rounds.
function samples(device, case_,    list, round) {
    list = ""
    for (round in rounds) if ((round, device, case_) in value) list = list " " value[round, device, case_]
    return list
}

# The median over the rounds of one device's value to another's in the same round.
function ratio(device, case_, other, other_case,    list, round) {
    list = ""
    for (round in rounds)
        if ((round, device, case_) in value && (round, other, other_case) in value)
            list = list " " value[round, device, case_] / value[round, other, other_case]
    return list == "" ? "-" : sprintf("%.2f", median(list))
}

function thousands(n,    s) {
    s = sprintf("%.0f", n)
    return length(s) > 3 ? substr(s, 1, length(s) - 3) "," substr(s, length(s) - 2) : s
}

function line(n,    i, s) {
    s = "|"
    for (i = 1; i <= n; i++) s = s " " cells[i] " |"
    print s
}

function rule(n,    i, s) {
    s = "|---|"
    for (i = 2; i <= n; i++) s = s "---:|"
    print s
}

function medians(case_, title,    i, any, list) {
    cells[1] = title
    any = 0
    for (i = 1; i <= devices; i++) {
        list = samples(device[i], case_)
        cells[i + 1] = list == "" ? "-" : thousands(median(list))
        if (list != "") any = 1
    }
    if (any) line(devices + 1)
}

# One row of ratios; left out when it would be empty.
function ratios_of(title, one, one_suffix, other,    c, any) {
    cells[1] = title
    any = 0
    for (c = 1; c <= count; c++) {
        cells[c + 1] = ratio(one, case_of[c] one_suffix, other, case_of[c])
        if (cells[c + 1] != "-") any = 1
    }
    if (any) line(count + 1)
}

{ rounds[$1]; value[$1, $2, $3] = $4; present[$2] }

END {
    wanted = split(columns, column, " ")
    devices = 0
    for (i = 1; i <= wanted; i++) if (column[i] in present) device[++devices] = column[i]
    count = split(cases, case_of, " ")
    total = 0
    for (round in rounds) total++

    printf "Operations a second, medians of %d round(s)\n\n", total
    cells[1] = "case"
    for (i = 1; i <= devices; i++) cells[i + 1] = device[i]
    line(devices + 1)
    rule(devices + 1)
    for (c = 1; c <= count; c++) medians(case_of[c], case_of[c])
    for (c = 1; c <= count; c++) medians(case_of[c] "-delayed", case_of[c] ", slow link")

    list = ""
    for (i = 1; i <= devices; i++)
        if (samples(device[i], "takeover") != "") list = list sprintf("%s%s %.0f", list == "" ? "" : ", ", device[i], median(samples(device[i], "takeover")))
    if (list != "") printf "\nTakeover, from promote to the end of the first write, in ms: %s\n", list

    printf "\nRatios, medians over the rounds of one to the other in the same round\n\n"
    cells[1] = "ratio"
    for (c = 1; c <= count; c++) cells[c + 1] = case_of[c]
    line(count + 1)
    rule(count + 1)
    pairs = split(ratios, pair, ",")
    for (p = 1; p <= pairs; p++) {
        split(pair[p], two, " ")
        ratios_of(two[1] " to " two[2], two[1], "", two[2])
    }
    for (i = 1; i <= devices; i++) ratios_of(device[i] ", slow link to fast", device[i], "-delayed", device[i])
}
