// The processes whose end is to be told, with the exit code. The service holds each as a pidfd, and its address names
// that very process: after a restart of the service, another process with the same number is not mistaken for it.
//
// While the screen is locked the extension is off. The endpoints stay then, and their state is asked for afterwards.

import GLib from 'gi://GLib';

import {errorName, errorText, isCancelled, PATH} from './service.js';

/** What is kept while the screen is locked. */
let kept = [];

export class Processes {
    /** `ended(name, code, signal)` for each, `changed()` when the list is another. */
    constructor(changed, ended) {
        this._changed = changed;
        this._ended = ended;
        this._service = null;
        this._watched = kept;
        kept = [];
    }

    /** name, pid and address of each. */
    get list() {
        return this._watched;
    }

    get objects() {
        return this._watched.map(it => it.object);
    }

    async start(service) {
        this._service = service;
        // Whoever was watched before may have an endpoint still, or none any more if the service is a new one.
        await Promise.all(this._watched.map(it => this._again(it)));
    }

    /** lock: goes on later; leave: is not wanted any more; neither: the service has gone. */
    stop({lock = false, leave = false} = {}) {
        if (lock)
            kept = this._watched;
        else if (leave)
            this._watched.forEach(it => this._service?.tell(it.object, 'Endpoint', 'Close'));
        this._service = null;
    }

    /** Begins: `text` is a number or the exact name of a command. The promise fails with what is wrong. */
    async watch(text) {
        const service = this._service;
        const number = /^\d+$/.test(text);
        const options = {
            [number ? 'pid' : 'command']: number ? new GLib.Variant('u', Number(text)) : new GLib.Variant('s', text),
        };
        const it = await this._attach('signal:', options);
        const same = this._watched.some(other => other.address === it.address);
        if (service !== this._service)
            return;
        if (same) {
            service.tell(it.object, 'Endpoint', 'Close');
            return;
        }
        this._watched.push(it);
        this._changed();
        await this._hear(it);
    }

    /** Ends it without a word. */
    forget(it) {
        this._drop(it);
        this._service?.tell(it.object, 'Endpoint', 'Close');
    }

    async _attach(address, options) {
        options['lifetime'] = new GLib.Variant('s', 'client');
        const parameters = new GLib.Variant('(sa{sv})', [address, options]);
        const [object] = await this._service.call(PATH, '', 'Attach', parameters);
        const property = async (iface, name) => {
            const asked = new GLib.Variant('(ss)', [`${PATH.slice(1).replaceAll('/', '.')}.${iface}`, name]);
            return (await this._service.call(object, 'org.freedesktop.DBus.Properties', 'Get', asked))[0];
        };
        const [name, pid, canonical] = await Promise.all(
            [property('Process', 'Command'), property('Process', 'Pid'), property('Endpoint', 'Address')]);
        return {object, name, pid, address: canonical, heard: 0};
    }

    async _again(it) {
        try {
            await this._hear(it);
        } catch {
            await this._attachAgain(it);
        }
    }

    async _attachAgain(it) {
        try {
            ({object: it.object} = await this._attach(it.address, {}));
            await this._hear(it);
        } catch (error) {
            if (errorName(error) === 'NotFound')
                this._end(it, -1, 0);
            else if (!isCancelled(error))
                console.warn(`org.example.IPC: ${it.name} (${it.pid}): ${errorText(error)}`);
        }
    }

    /** Waits for the signal; the call says whether it comes too late for that. */
    async _hear(it) {
        const service = this._service;
        service.unhear(it.heard);
        it.heard = service.hear(it.object, 'Process', 'Exited', ([code, signal]) => this._end(it, code, signal));
        try {
            const [code, signal] = await service.call(it.object, 'Process', 'WaitExit', new GLib.Variant('(u)', [0]));
            this._end(it, code, signal);
        } catch (error) {
            if (errorName(error) !== 'Busy')
                throw error;
        }
    }

    _end(it, code, signal) {
        if (!this._drop(it))
            return;
        this._service?.tell(it.object, 'Endpoint', 'Close');
        this._ended(`${it.name} (${it.pid})`, code, signal);
    }

    _drop(it) {
        const place = this._watched.indexOf(it);
        if (place >= 0)
            this._watched.splice(place, 1);
        this._service?.unhear(it.heard);
        this._changed();
        return place >= 0;
    }
}
