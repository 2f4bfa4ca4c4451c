// Words and numbers for people.

/** A path as people write it: ~ is the home directory. */
function shortPath(path, home) {
    if (path === home)
        return "~";
    return path.startsWith(`${home}/`) ? `~${path.slice(home.length)}` : path;
}

/** The path that somebody has typed or chosen; "" if it is none. */
function typedPath(text, home) {
    const path = text.trim().replace(/^~(?=\/|$)/, home);
    if (!path.startsWith("/"))
        return "";
    return path.length > 1 ? path.replace(/\/+$/, "") : path;
}

/** The state of a network interface, in the words of operstate (RFC 2863). */
function linkState(state) {
    const words = {
        up: i18n("up"),
        down: i18n("down"),
        unknown: i18n("state not known"),
        dormant: i18n("dormant"),
        testing: i18n("testing"),
        lowerlayerdown: i18n("no carrier"),
        notpresent: i18n("not present"),
    };
    return words[state] ?? state;
}

function linkIcon({name, state, loopback}) {
    if (loopback)
        return "computer";
    if (name.startsWith("wl"))
        return state === "up" ? "network-wireless" : "network-wireless-disconnected";
    return ["up", "unknown"].includes(state) ? "network-wired" : "network-wired-unavailable";
}

/** What a change in a watched folder is called; "" for what nobody needs to know. */
function folderChange(events, path, from, home) {
    const last = path.lastIndexOf("/");
    const name = path.slice(last + 1);
    const folder = shortPath(path.slice(0, last) || "/", home);
    const has = name => events.includes(name);
    if (has("MOVED_FROM") && has("MOVED_TO"))
        return i18n("%1 is now %2 in %3", from.slice(from.lastIndexOf("/") + 1), name, folder);
    // With all that happened to it meanwhile; what was last decides whether it is there.
    const when = (...any) => Math.max(...any.map(name => events.lastIndexOf(name)));
    if (when("DELETE", "MOVED_FROM") > when("CREATE", "MOVED_TO", "CLOSE_WRITE"))
        return i18n("%1 is gone from %2", name, folder);
    if (has("CREATE") || has("MOVED_TO"))
        return i18n("%1 is new in %2", name, folder);
    if (has("CLOSE_WRITE"))
        return i18n("%1 was written in %2", name, folder);
    return "";
}

const SIGNALS = ["", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
    "WINCH", "IO", "PWR", "SYS"];

/** How a process ended: code and signal as WaitExit tells them. */
function exitStatus(code, signal) {
    if (signal > 0)
        return i18n("ended by %1", SIGNALS[signal] ? `SIG${SIGNALS[signal]}` : `${signal}`);
    if (code < 0)
        return i18n("ended, exit code not known");
    return i18n("exit code %1", `${code}`);
}
