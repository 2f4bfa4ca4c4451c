// The network interfaces with their addresses, as the service tells of them: a list with the number of the last event
// that is in it, and the signals after that number. Signals that come while a list is on its way are kept for it.
//
// Only the four signals that matter are heard, so that nobody wakes this process for routes or neighbours. Whether one
// of the four was dropped on a busy bus can then not be seen; `refresh` takes new lists whenever somebody looks.

import {isCancelled} from './service.js';

const NODE = '/org/example/IPC/netlink';

export class Network {
    /** `changed()` when something is another, `happened(what, link)` for each event. */
    constructor(changed, happened) {
        this._changed = changed;
        this._happened = happened;
        this.stop();
    }

    /** The interfaces, each with its addresses, in the order of their numbers. */
    get links() {
        const ofLink = index => [...this._addresses.entries.values()].filter(it => it.index === index);
        return [...this._links.entries.values()]
            .sort((one, other) => one.index - other.index)
            .map(link => ({...link, addresses: ofLink(link.index).map(it => `${it.address}/${it.prefix}`)}));
    }

    start(service) {
        this._service = service;
        const hear = (signal, handler) => service.hear(NODE, 'Netlink', signal, handler);
        hear('LinkChanged', ([seq, index, name, state, details]) => {
            const link = {index, name, state, loopback: isLoopback(name, details)};
            this._apply(this._links, seq, entries => entries.set(index, link));
            this._happened('link', {...link, was: details['old-state'], isNew: details['old-state'] === undefined});
        });
        hear('LinkRemoved', ([seq, index, name]) => {
            this._apply(this._links, seq, entries => entries.delete(index));
            this._happened('link-removed', {name});
        });
        hear('AddressAdded', ([seq, index, name, address, prefix]) => {
            const isNew = !this._addresses.entries.has(key(index, address, prefix));
            this._apply(this._addresses, seq,
                entries => entries.set(key(index, address, prefix), {index, address, prefix}));
            if (isNew)
                this._happened('address', {name, address, prefix});
        });
        hear('AddressRemoved', ([seq, index, name, address, prefix]) => {
            this._apply(this._addresses, seq, entries => entries.delete(key(index, address, prefix)));
            this._happened('address-removed', {name, address, prefix});
        });
        hear('Overflow', ([, source]) => {
            // Of links, what has changed meanwhile follows by itself, unless those who tell are new.
            if (source === 'restart')
                this.refresh();
        });
        this.refresh();
    }

    stop() {
        this._service = null;
        this._links = {entries: new Map(), seq: 0, early: null};
        this._addresses = {entries: new Map(), seq: 0, early: null};
    }

    /** Takes new lists. */
    refresh() {
        this._load(this._links, 'Links', ([index, name, state, details]) =>
            [index, {index, name, state, loopback: isLoopback(name, details)}]);
        this._load(this._addresses, 'Addresses', ([index, , address, prefix]) =>
            [key(index, address, prefix), {index, address, prefix}]);
    }

    async _load(table, method, entry) {
        if (!this._service || table.early)
            return;
        table.early = [];
        try {
            const [seq, list] = await this._service.call(NODE, 'Netlink', method);
            table.entries = new Map(list.map(entry));
            table.seq = seq;
        } catch (error) {
            if (!isCancelled(error))
                console.warn(`org.example.IPC: ${method}: ${error.message}`);
        }
        const early = table.early;
        table.early = null;
        for (const [seq, change] of early)
            this._apply(table, seq, change);
        this._changed();
    }

    /** Makes a change, unless it is in the list already. */
    _apply(table, seq, change) {
        if (table.early) {
            table.early.push([seq, change]);
        } else if (seq > table.seq) {
            table.seq = seq;
            change(table.entries);
            this._changed();
        }
    }
}

function key(index, address, prefix) {
    return `${index} ${address}/${prefix}`;
}

function isLoopback(name, details) {
    return details.flags?.includes?.('loopback') ?? name === 'lo';
}
