// The folders that are watched: one endpoint of the service for each path in the settings, made anew when the service
// was away. Each is heard on its own, as what other programs watch is nobody's business here; what happened before it
// was heard is asked for.

import GLib from 'gi://GLib';

import {folderText} from './feed.js';
import {errorName, errorText, isCancelled, PATH} from './service.js';

/** A file that is written makes several events; they are told as one when it has been quiet for so long. */
const QUIET_MS = 200;

/** How often a folder is looked at where the kernel does not tell of all changes, as on network file systems. */
const POLL_MS = 2000;

export class Folders {
    /** `happened(text)` for each change, `changed()` when a folder can or cannot be watched. */
    constructor(settings, changed, happened) {
        this._settings = settings;
        this._changed = changed;
        this._happened = happened;
        this._service = null;
        this._watches = new Map();
    }

    /** Path and what is wrong with it, if something is. */
    get list() {
        return this._settings.get_strv('folders').map(path => ({path, error: this._watches.get(path)?.error ?? ''}));
    }

    /** The object paths of the endpoints. */
    get objects() {
        return [...this._watches.values()].map(watch => watch.object).filter(object => object);
    }

    start(service) {
        this._service = service;
        this.sync();
    }

    /** With `leave`, the service is told that the watches are not wanted any more. */
    stop(leave = false) {
        for (const watch of this._watches.values()) {
            watch.heard.forEach(id => this._service.unhear(id));
            if (leave)
                this._end(watch);
        }
        this._watches.clear();
        this._service = null;
    }

    add(path) {
        const folders = this._settings.get_strv('folders');
        if (!folders.includes(path))
            this._settings.set_strv('folders', [...folders, path]);
    }

    remove(path) {
        this._settings.set_strv('folders', this._settings.get_strv('folders').filter(it => it !== path));
    }

    /** Watches what the settings say, and nothing else. */
    sync() {
        if (!this._service)
            return;
        const wanted = this._settings.get_strv('folders');
        for (const [path, watch] of this._watches) {
            if (!wanted.includes(path)) {
                this._watches.delete(path);
                this._end(watch);
            }
        }
        for (const path of wanted) {
            if (!this._watches.has(path))
                this._begin(path);
        }
        this._changed();
    }

    async _begin(path) {
        const watch = {path, object: null, heard: [], seq: 0, error: ''};
        const service = this._service;
        this._watches.set(path, watch);
        try {
            watch.object = await create(service, path, {'debounce-ms': new GLib.Variant('u', QUIET_MS)})
                .catch(error => {
                    if (errorName(error) !== 'NotSupported')
                        throw error;
                    return create(service, path, {'poll-ms': new GLib.Variant('u', POLL_MS)});
                });
            if (this._watches.get(path) !== watch) {
                // Not wanted any more, or the service has been another one meanwhile.
                if (this._service === service)
                    this._end(watch);
                return;
            }
            this._hear(watch);
            const [events] = await service.call(watch.object, 'Watch', 'Since', new GLib.Variant('(t)', [0]));
            for (const [seq, , names, file, from] of events)
                this._event(watch, seq, names, file, from);
        } catch (error) {
            if (!isCancelled(error))
                this._broken(watch, errorText(error));
        }
    }

    _hear(watch) {
        const {object} = watch;
        watch.heard = [
            this._service.hear(object, 'Watch', 'Changed',
                ([seq, events, path, from]) => this._event(watch, seq, events, path, from)),
            this._service.hear(object, 'Endpoint', 'Closed', ([reason]) => this._broken(watch, reason)),
        ];
    }

    _event(watch, seq, events, path, from) {
        if (seq <= watch.seq)
            return;
        watch.seq = seq;
        if (events.includes('IGNORED')) {
            this._broken(watch, events.join(' '));
            return;
        }
        const text = folderText(events, path, from);
        if (text)
            this._happened(text);
    }

    _broken(watch, why) {
        watch.error = why;
        this._changed();
    }

    _end(watch) {
        if (!watch.object)
            return;
        watch.heard.forEach(id => this._service.unhear(id));
        this._service.tell(watch.object, 'Endpoint', 'Close');
    }
}

async function create(service, path, options) {
    options['path'] = new GLib.Variant('s', path);
    options['events'] = new GLib.Variant('as', ['create', 'delete', 'move', 'close-write']);
    options['lifetime'] = new GLib.Variant('s', 'client');
    const parameters = new GLib.Variant('(sa{sv})', ['inotify:', options]);
    const [object] = await service.call(PATH, '', 'Create', parameters);
    return object;
}
