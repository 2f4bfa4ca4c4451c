// The service, on whichever bus has it: the system bus if the name is there or can be started there, else the
// session bus. Who uses it hears when it is there, when it has gone and when it is there again; what was asked
// before does not answer afterwards. Nothing here waits: every call is asynchronous.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

export const NAME = 'org.example.IPC';
export const PATH = '/org/example/IPC';

const BUS = ['org.freedesktop.DBus', '/org/freedesktop/DBus', 'org.freedesktop.DBus'];
const KINDS = [
    ['system', Gio.BusType.SYSTEM],
    ['session', Gio.BusType.SESSION],
];

/** What there is of the service. */
export const Presence = {
    SEARCHING: 'searching',
    /** Neither bus has the name or can start it. */
    ABSENT: 'absent',
    /** It does not run; a bus can start it. */
    STOPPED: 'stopped',
    STARTING: 'starting',
    PRESENT: 'present',
};

/** The name of an interface of the service: the manager's for ''. */
function interfaceName(short) {
    if (short.includes('.'))
        return short;
    return short ? `${NAME}.${short}` : NAME;
}

/** Whether a call did not answer because it is no longer wanted. */
export function isCancelled(error) {
    return error.matches?.(Gio.IOErrorEnum, Gio.IOErrorEnum.CANCELLED) ?? false;
}

/** The last part of a D-Bus error's name, such as NotFound. */
export function errorName(error) {
    const name = error instanceof GLib.Error ? Gio.DBusError.get_remote_error(error) : null;
    return name ? name.slice(name.lastIndexOf('.') + 1) : '';
}

/** What an error says, without what GLib writes in front of it. */
export function errorText(error) {
    if (error instanceof GLib.Error)
        Gio.DBusError.strip_remote_error(error);
    return error.message;
}

export class Service {
    /** `changed(presence)` is called whenever that is another one. */
    constructor(changed) {
        this._changed = changed;
        this._life = new Gio.Cancellable();
        this._session = null;
        this._subscriptions = [];
        this._started = false;
        this.presence = Presence.SEARCHING;
        this.kind = '';
        this.failure = '';
        this._buses = KINDS.map(([kind, type]) => this._look(kind, type));
    }

    destroy() {
        this._leave();
        this._life.cancel();
        for (const bus of this._buses) {
            if (bus.watch)
                Gio.bus_unwatch_name(bus.watch);
        }
        this._changed = () => {};
    }

    /** Calls a method of the service; the promise is for its answers, as plain values. */
    call(path, iface, method, parameters = null) {
        const {connection, cancellable} = this._session ?? {};
        if (!connection)
            return Promise.reject(new Error(`${NAME} is not there`));
        return call(connection, [NAME, path, interfaceName(iface)], method, parameters, cancellable);
    }

    /** Calls a method and wants no answer; what goes wrong is logged, unless it is only that the object has gone. */
    tell(path, iface, method, parameters = null) {
        this.call(path, iface, method, parameters).catch(error => {
            if (!isCancelled(error) && !['UnknownObject', 'NoSuchEndpoint'].includes(errorName(error)))
                console.warn(`${NAME}: ${method} of ${path}: ${errorText(error)}`);
        });
    }

    /** Hears a signal, of one object or (null) of all, until the service leaves or `unhear` of what this returns. */
    hear(path, iface, signal, handler) {
        const {connection} = this._session;
        const id = connection.signal_subscribe(NAME, interfaceName(iface), signal, path, null,
            Gio.DBusSignalFlags.NONE, (_connection, _sender, object, _iface, _signal, parameters) => {
                handler(parameters.recursiveUnpack(), object);
            });
        this._subscriptions.push(id);
        return id;
    }

    unhear(id) {
        const place = this._subscriptions.indexOf(id);
        if (place >= 0) {
            this._subscriptions.splice(place, 1);
            this._session.connection.signal_unsubscribe(id);
        }
    }

    /** Has the bus start the service. */
    start() {
        const bus = this._best();
        if (!bus || bus.owner || this.presence === Presence.STARTING)
            return;
        this._started = true;
        this.failure = '';
        this._tell(Presence.STARTING);
        const parameters = new GLib.Variant('(su)', [NAME, 0]);
        call(bus.connection, BUS, 'StartServiceByName', parameters, this._life).catch(error => {
            if (isCancelled(error))
                return;
            this.failure = errorText(error);
            if (this.presence === Presence.STARTING)
                this._tell(Presence.STOPPED);
        });
    }

    /** Asks the buses again what they can start: it may have been installed meanwhile. */
    lookAgain() {
        if (this.presence !== Presence.PRESENT) {
            for (const bus of this._buses.filter(it => it.connection))
                this._askActivatable(bus);
        }
    }

    /** A bus as it is found: its connection, who has the name there and whether the bus can start somebody. */
    _look(kind, type) {
        const bus = {kind, connection: null, owner: null, activatable: false, watch: 0};
        bus.unasked = new Set(['owner', 'activatable']);
        Gio.bus_get(type, this._life, (_source, result) => {
            try {
                bus.connection = Gio.bus_get_finish(result);
            } catch (error) {
                if (isCancelled(error))
                    return;
                bus.unasked.clear();
                this._choose();
                return;
            }
            const owned = owner => {
                bus.unasked.delete('owner');
                bus.owner = owner;
                this._choose();
            };
            bus.watch = Gio.bus_watch_name_on_connection(bus.connection, NAME, Gio.BusNameWatcherFlags.NONE,
                (_connection, _name, owner) => owned(owner), () => owned(null));
            this._askActivatable(bus).finally(() => {
                bus.unasked.delete('activatable');
                this._choose();
            });
        });
        return bus;
    }

    async _askActivatable(bus) {
        try {
            const [names] = await call(bus.connection, BUS, 'ListActivatableNames', null, this._life);
            bus.activatable = names.includes(NAME);
            this._choose();
        } catch (error) {
            if (!isCancelled(error))
                console.warn(`${NAME}: the ${bus.kind} bus does not say what it can start: ${error.message}`);
        }
    }

    _best() {
        return this._buses.find(bus => bus.owner || bus.activatable) ?? null;
    }

    _choose() {
        // Not before both have said what they have: the first to answer is not always the one to use.
        if (this._life.is_cancelled() || this._buses.some(bus => bus.unasked.size > 0))
            return;
        const bus = this._best();
        this.kind = bus?.kind ?? '';
        if (this._session && this._session.owner === bus?.owner && this._session.connection === bus?.connection)
            return;
        this._leave();
        if (bus?.owner) {
            this._session = {connection: bus.connection, owner: bus.owner, cancellable: new Gio.Cancellable()};
            this._started = true;
            this._tell(Presence.PRESENT);
        } else if (bus && !this._started) {
            this.start();
        } else if (this.presence !== Presence.STARTING || !bus) {
            // Somebody has stopped it, or it broke: whether it is to run is not decided here.
            this._tell(bus ? Presence.STOPPED : Presence.ABSENT);
        }
    }

    _leave() {
        if (!this._session)
            return;
        const {connection, cancellable} = this._session;
        this._session = null;
        cancellable.cancel();
        for (const id of this._subscriptions)
            connection.signal_unsubscribe(id);
        this._subscriptions = [];
    }

    _tell(presence) {
        if (presence === this.presence && presence !== Presence.PRESENT)
            return;
        this.presence = presence;
        this._changed(presence);
    }
}

function call(connection, [name, path, iface], method, parameters, cancellable) {
    return new Promise((resolve, reject) => {
        connection.call(name, path, iface, method, parameters, null, Gio.DBusCallFlags.NO_AUTO_START, -1,
            cancellable, (_source, result) => {
                try {
                    resolve(connection.call_finish(result).recursiveUnpack());
                } catch (error) {
                    reject(error);
                }
            });
    });
}
