// What happened lately: a line for each event, the newest first. What happens again and again is one line that says
// how often, so that a device that flaps does not push everything else away.

import GLib from 'gi://GLib';

import {gettext as _} from 'resource:///org/gnome/shell/extensions/extension.js';

import {exitStatus, fill, linkState, shortPath} from './text.js';

/** How many lines are kept. */
const KEPT = 50;

export class Feed {
    /** `wanted(kind)` says whether events of this kind are shown; `changed()` follows a new line. */
    constructor(wanted, changed) {
        this._wanted = wanted;
        this._changed = changed;
        this.lines = [];
    }

    /** kind: network, device, folder or process. */
    add(kind, icon, text) {
        if (!this._wanted(kind))
            return;
        const time = GLib.get_real_time();
        const same = this.lines.findIndex(line => line.kind === kind && line.text === text);
        const [before] = same >= 0 ? this.lines.splice(same, 1) : [];
        this.lines.unshift({kind, icon, text, time, count: (before?.count ?? 0) + 1});
        this.lines.length = Math.min(this.lines.length, KEPT);
        this._changed();
    }

    clear() {
        this.lines = [];
        this._changed();
    }

    network(what, it) {
        const of = text => this.add('network', 'network-wired-symbolic', fill(text, it));
        // They come and go with each change of the interface's state.
        if (it.address?.startsWith('fe80:'))
            return;
        if (what === 'link-removed')
            of(_('{name} has gone'));
        else if (what === 'address')
            of(_('{name} has the address {address}'));
        else if (what === 'address-removed')
            of(_('{name} has lost the address {address}'));
        else if (it.isNew)
            of(_('{name} is new'));
        else if (it.was !== undefined)
            of(fill(_('{name}: {state}'), {...it, state: linkState(it.state)}));
    }

    device({action, devpath, subsystem}) {
        const name = devpath.slice(devpath.lastIndexOf('/') + 1);
        const texts = {
            add: _('Device {name} was added ({subsystem})'),
            remove: _('Device {name} was removed ({subsystem})'),
            change: _('Device {name} has changed ({subsystem})'),
        };
        if (texts[action])
            this.add('device', 'drive-removable-media-symbolic', fill(texts[action], {name, subsystem}));
    }

    folder(text) {
        this.add('folder', 'folder-symbolic', text);
    }

    process(name, code, signal) {
        const text = fill(_('{name}: {status}'), {name, status: exitStatus(code, signal)});
        this.add('process', 'application-x-executable-symbolic', text);
    }
}

/** What a change in a watched folder is called; '' for what nobody needs to know. */
export function folderText(events, path, from) {
    const last = path.lastIndexOf('/');
    const names = {name: path.slice(last + 1), folder: shortPath(path.slice(0, last) || '/')};
    const has = name => events.includes(name);
    if (has('MOVED_FROM') && has('MOVED_TO'))
        return fill(_('{old} is now {name} in {folder}'), {...names, old: from.slice(from.lastIndexOf('/') + 1)});
    // With all that happened to it meanwhile; what was last decides whether it is there.
    const when = (...any) => Math.max(...any.map(name => events.lastIndexOf(name)));
    if (when('DELETE', 'MOVED_FROM') > when('CREATE', 'MOVED_TO', 'CLOSE_WRITE'))
        return fill(_('{name} is gone from {folder}'), names);
    if (has('CREATE') || has('MOVED_TO'))
        return fill(_('{name} is new in {folder}'), names);
    if (has('CLOSE_WRITE'))
        return fill(_('{name} was written in {folder}'), names);
    return '';
}
