// The extension: what is known (Model), and where it is shown (Indicator). Switching it off, which the lock screen does
// too, ends everything that was begun here.

import * as Main from 'resource:///org/gnome/shell/ui/main.js';
import {Extension, gettext as _} from 'resource:///org/gnome/shell/extensions/extension.js';

import {Feed} from './feed.js';
import {Folders} from './folders.js';
import {Indicator} from './indicator.js';
import {Network} from './network.js';
import {Objects} from './objects.js';
import {Processes} from './processes.js';
import {NAME, Presence, Service} from './service.js';
import {exitStatus} from './text.js';

const NETLINK = '/org/example/IPC/netlink';

/** Everything that is known, from the service and from the settings. */
class Model {
    constructor(settings, changed, notify) {
        this.settings = settings;
        this._notify = notify;
        const kinds = {network: 'feed-network', device: 'feed-devices'};
        this.feed = new Feed(kind => !kinds[kind] || settings.get_boolean(kinds[kind]), changed);
        this.network = new Network(changed, (what, it) => this._network(what, it));
        this.folders = new Folders(settings, changed, text => this._folder(text));
        this.processes = new Processes(changed, (...ended) => this._process(...ended));
        this.objects = new Objects(changed);
        this._changed = changed;
        this._settingsChanged = settings.connect('changed', (_settings, key) => {
            if (key === 'folders')
                this.folders.sync();
            changed();
        });
        this.service = new Service(presence => this._presence(presence));
    }

    destroy(lock) {
        this.settings.disconnect(this._settingsChanged);
        this.objects.close();
        this._stop({lock, leave: !lock});
        this.service.destroy();
    }

    /** Somebody looks at it, or no longer. */
    opened(open) {
        if (!open) {
            this.objects.close();
            return;
        }
        this.service.lookAgain();
        this.network.refresh();
        this.objects.open();
    }

    _presence(presence) {
        this._stop();
        if (presence === Presence.PRESENT)
            this._start();
        this._changed();
    }

    _start() {
        const {service} = this;
        this.network.start(service);
        service.hear(NETLINK, 'Netlink', 'DeviceEvent', ([, action, devpath, subsystem, source]) => {
            // udevd tells the same again.
            if (source === 'kernel')
                this.feed.device({action, devpath, subsystem});
        });
        // On the system bus the process that holds this user's objects may end by itself: they are made anew.
        service.hear('/org/example/IPC', '', 'Lost', () => this._begin());
        this._begin();
    }

    _begin() {
        this.folders.stop();
        this.folders.start(this.service);
        this.processes.start(this.service);
        this.objects.start(this.service);
    }

    _stop(how = {}) {
        this.network.stop();
        this.folders.stop(how.leave || how.lock);
        this.processes.stop(how);
        this.objects.stop();
    }

    _network(what, it) {
        if (!it.loopback)
            this.feed.network(what, it);
    }

    _folder(text) {
        this.feed.folder(text);
        if (this.settings.get_boolean('notify-folders'))
            this._notify(text, '');
    }

    _process(name, code, signal) {
        this.feed.process(name, code, signal);
        if (this.settings.get_boolean('notify-processes'))
            this._notify(_('{name} has ended').replace('{name}', name), exitStatus(code, signal));
    }
}

export default class IpcExtension extends Extension {
    enable() {
        this._settings = this.getSettings();
        const changed = () => this._indicator?.changed();
        this._model = new Model(this._settings, changed, (title, text) => this._notify(title, text));
        this._indicator = new Indicator(this, this._model);
        Main.panel.addToStatusArea(this.uuid, this._indicator);
    }

    disable() {
        // What is waited for while the screen is locked is told afterwards; see processes.js.
        this._model.destroy(Main.sessionMode.isLocked);
        this._indicator.destroy();
        this._model = null;
        this._indicator = null;
        this._settings = null;
    }

    _notify(title, text) {
        if (this._settings?.get_boolean('notifications'))
            Main.notify(title, text);
        else
            console.debug(`${NAME}: ${title}: ${text}`);
    }
}
