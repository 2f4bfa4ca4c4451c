// The endpoints and relays that the service holds for this user: how much waits in them, how fast data moves. No
// signal tells that, so it is asked for, in one call a second, while somebody looks, and never otherwise.

import GLib from 'gi://GLib';

import {isCancelled, PATH} from './service.js';

/** How many values a line of the menu remembers. */
const REMEMBERED = 40;

export class Objects {
    /** `changed()` follows new values. */
    constructor(changed) {
        this._changed = changed;
        this._service = null;
        this._timer = 0;
        this._asked = false;
        this.relays = [];
        this.endpoints = [];
    }

    start(service) {
        this._service = service;
        this.relays = [];
        this.endpoints = [];
        if (this._timer)
            this._ask();
    }

    stop() {
        this._service = null;
        this.relays = [];
        this.endpoints = [];
    }

    /** Somebody looks. */
    open() {
        if (this._timer)
            return;
        this._ask();
        this._timer = GLib.timeout_add_seconds(GLib.PRIORITY_DEFAULT, 1, () => {
            this._ask();
            return GLib.SOURCE_CONTINUE;
        });
    }

    close() {
        if (this._timer)
            GLib.source_remove(this._timer);
        this._timer = 0;
    }

    pause(relay) {
        return this._change(relay, relay.state === 'paused' ? 'Resume' : 'Pause');
    }

    stopRelay(relay) {
        return this._change(relay, 'Stop');
    }

    async _change(relay, method) {
        try {
            await this._service?.call(relay.path, 'Relay', method);
        } catch (error) {
            if (!isCancelled(error))
                console.warn(`org.example.IPC: ${method} of ${relay.path}: ${error.message}`);
        }
        this._ask();
    }

    async _ask() {
        // One question at a time: a service that is slow is not asked more often for it.
        if (!this._service || this._asked)
            return;
        this._asked = true;
        const service = this._service;
        try {
            const [objects] = await service.call(PATH, 'org.freedesktop.DBus.ObjectManager', 'GetManagedObjects');
            if (service === this._service)
                this._take(objects);
        } catch (error) {
            if (!isCancelled(error))
                console.warn(`org.example.IPC: GetManagedObjects: ${error.message}`);
        } finally {
            this._asked = false;
        }
    }

    _take(objects) {
        const address = path => objects[path]?.['org.example.IPC.Endpoint']?.Address ?? path;
        const before = new Map([...this.relays, ...this.endpoints].map(it => [it.path, it.history]));
        const remember = (path, value) => [...before.get(path) ?? [], value].slice(-REMEMBERED);
        const relays = [], endpoints = [];
        for (const [path, interfaces] of Object.entries(objects)) {
            const relay = interfaces['org.example.IPC.Relay'];
            const endpoint = interfaces['org.example.IPC.Endpoint'];
            if (relay) {
                relays.push({
                    path,
                    source: address(relay.Source),
                    sink: address(relay.Sink),
                    state: relay.State,
                    rate: relay.Rate,
                    history: remember(path, relay.Rate),
                });
            } else if (endpoint) {
                const stream = interfaces['org.example.IPC.Stream'];
                const depth = (stream ?? interfaces['org.example.IPC.Messages'])?.Depth ?? null;
                endpoints.push({
                    path,
                    address: endpoint.Address,
                    createdAt: endpoint.CreatedAt,
                    depth,
                    bytes: stream !== undefined,
                    history: depth === null ? [] : remember(path, depth),
                });
            }
        }
        this.relays = relays.sort((one, other) => one.path.localeCompare(other.path, undefined, {numeric: true}));
        // The newest first: it is what somebody has just made.
        this.endpoints = endpoints.sort((one, other) => other.createdAt - one.createdAt);
        this._changed();
    }
}
