// Words and numbers for people.

import GLib from 'gi://GLib';

import {gettext as _, ngettext} from 'resource:///org/gnome/shell/extensions/extension.js';

/** Puts values in the place of their {names}, so that translators may put them in another order. */
export function fill(text, values) {
    return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** A path as people write it: ~ is the home directory. */
export function shortPath(path) {
    const home = GLib.get_home_dir();
    if (path === home)
        return '~';
    return path.startsWith(`${home}/`) ? `~${path.slice(home.length)}` : path;
}

/** The path that somebody has typed; null if it is none. */
export function typedPath(text) {
    const path = text.trim().replace(/^~(?=\/|$)/, GLib.get_home_dir());
    if (!path.startsWith('/'))
        return null;
    return path.length > 1 ? path.replace(/\/+$/, '') : path;
}

/** A time of day, from microseconds since the epoch. */
export function timeOfDay(microseconds) {
    return GLib.DateTime.new_from_unix_local(Math.floor(microseconds / 1e6)).format('%H:%M:%S');
}

/** Bytes a second. */
export function rate(bytes) {
    return fill(_('{size}/s'), {size: GLib.format_size(bytes)});
}

/** How much waits: bytes of a stream, or messages. */
export function depth(count, bytes) {
    if (bytes)
        return GLib.format_size(count);
    return fill(ngettext('{count} message', '{count} messages', count), {count});
}

/** The state of a network interface, in the words of operstate (RFC 2863). */
export function linkState(state) {
    const words = {
        up: _('up'),
        down: _('down'),
        unknown: _('state not known'),
        dormant: _('dormant'),
        testing: _('testing'),
        lowerlayerdown: _('no carrier'),
        notpresent: _('not present'),
    };
    return words[state] ?? state;
}

const SIGNALS = ['', 'HUP', 'INT', 'QUIT', 'ILL', 'TRAP', 'ABRT', 'BUS', 'FPE', 'KILL', 'USR1', 'SEGV', 'USR2', 'PIPE',
    'ALRM', 'TERM', 'STKFLT', 'CHLD', 'CONT', 'STOP', 'TSTP', 'TTIN', 'TTOU', 'URG', 'XCPU', 'XFSZ', 'VTALRM', 'PROF',
    'WINCH', 'IO', 'PWR', 'SYS'];

/** How a process ended: code and signal as Exited tells them. */
export function exitStatus(code, signal) {
    if (signal > 0)
        return fill(_('ended by {signal}'), {signal: SIGNALS[signal] ? `SIG${SIGNALS[signal]}` : signal});
    if (code < 0)
        return _('ended, exit code not known');
    return fill(_('exit code {code}'), {code});
}
