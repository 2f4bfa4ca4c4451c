// The icon in the panel and its menu. Nothing is drawn, asked or computed for it while it is closed; while it is open,
// what has changed is shown once before the next frame, however often it changed.

import GLib from 'gi://GLib';
import GObject from 'gi://GObject';
import Gio from 'gi://Gio';
import Shell from 'gi://Shell';
import St from 'gi://St';

import * as PanelMenu from 'resource:///org/gnome/shell/ui/panelMenu.js';
import * as PopupMenu from 'resource:///org/gnome/shell/ui/popupMenu.js';
import {gettext as _} from 'resource:///org/gnome/shell/extensions/extension.js';

import {EntryRow, Row, Rows} from './rows.js';
import {Presence} from './service.js';
import {depth, fill, linkState, rate, shortPath, timeOfDay, typedPath} from './text.js';

/** How many lines a section has at most: a menu must fit on a screen. */
const LINKS = 8, RELAYS = 4, ENDPOINTS = 5;

export const Indicator = GObject.registerClass(
class IpcIndicator extends PanelMenu.Button {
    _init(extension, model) {
        super._init(0.5, _('IPC'));
        this._extension = extension;
        this._model = model;
        this._settings = model.settings;
        this._update = 0;
        this._icon = new St.Icon({
            gicon: Gio.icon_new_for_string(`${extension.path}/icons/org.example.IPC-symbolic.svg`),
            style_class: 'system-status-icon',
        });
        this.add_child(this._icon);
        this.menu.box.add_style_class_name('ipc-menu');

        this._trouble = this._section('', () => new Row());
        this._start = new PopupMenu.PopupMenuItem(_('Start the Service'));
        this._start.connect('activate', () => this._model.service.start());
        this.menu.addMenuItem(this._start);
        this._network = this._section(_('Network'), () => new Row());
        this._events = this._section(_('Recent Events'), () => new Row());
        this._relays = this._section(_('Relays'), () => this._relayRow());
        this._endpoints = this._section(_('Endpoints'), () => new Row({sparkline: true}));
        this._line = new PopupMenu.PopupSeparatorMenuItem();
        this.menu.addMenuItem(this._line);
        this._buildFolders();
        this._buildProcesses();
        this.menu.addMenuItem(new PopupMenu.PopupSeparatorMenuItem());
        this.menu.addAction(_('Settings'), () => this._extension.openPreferences());

        this.menu.connect('open-state-changed', (_menu, open) => this._opened(open));
        this.connect('destroy', () => this._cancelUpdate());
        this.changed();
    }

    /** Something of the model is another. */
    changed() {
        this._icon.opacity = this._model.service?.presence === Presence.PRESENT ? 255 : 100;
        if (!this.menu.isOpen || this._update)
            return;
        this._update = GLib.idle_add(GLib.PRIORITY_DEFAULT, () => {
            this._update = 0;
            this._show();
            return GLib.SOURCE_REMOVE;
        });
    }

    _cancelUpdate() {
        if (this._update)
            GLib.source_remove(this._update);
        this._update = 0;
    }

    _section(title, make) {
        const separator = new PopupMenu.PopupSeparatorMenuItem(title);
        const section = new PopupMenu.PopupMenuSection();
        this.menu.addMenuItem(separator);
        this.menu.addMenuItem(section);
        const rows = new Rows(section, make);
        return items => {
            separator.visible = title !== '' && items.length > 0;
            rows.show(items);
        };
    }

    _opened(open) {
        this._model.opened(open);
        if (open)
            this._show();
        else
            this._cancelUpdate();
    }

    _show() {
        const there = this._model.service.presence === Presence.PRESENT;
        this._start.visible = this._model.service.presence === Presence.STOPPED;
        this._trouble(there ? [] : [['trouble', this._troubleLine()]]);
        this._showNetwork(there);
        this._showEvents();
        this._showObjects(there);
        this._line.visible = this._folders.visible = this._processes.visible = there;
        this._showFolders();
        this._showProcesses();
    }

    _troubleLine() {
        const {presence, failure} = this._model.service;
        const icon = 'dialog-information-symbolic';
        switch (presence) {
        case Presence.ABSENT:
            return {
                icon,
                title: _('The IPC service is not installed'),
                subtitle: _('Install the package “ipcd”, or run “ipcd --bus session” in a terminal.'),
            };
        case Presence.STOPPED:
            return {icon, title: _('The IPC service does not run'), subtitle: failure};
        default:
            return {icon, title: _('Waiting for the IPC service')};
        }
    }

    _showNetwork(there) {
        const wanted = there && this._settings.get_boolean('show-network');
        const loopback = this._settings.get_boolean('show-loopback');
        const links = wanted ? this._model.network.links.filter(link => loopback || !link.loopback) : [];
        this._network(shorten(links, LINKS, link => [link.index, {
            icon: linkIcon(link),
            title: link.name,
            subtitle: link.addresses.join('\n'),
            end: linkState(link.state),
        }]));
    }

    _showEvents() {
        const count = this._settings.get_boolean('show-events') ? this._settings.get_uint('events-shown') : 0;
        this._events(this._model.feed.lines.slice(0, count).map((line, place) => [place, {
            icon: line.icon,
            title: line.count > 1 ? fill(_('{text} (×{count})'), line) : line.text,
            end: timeOfDay(line.time),
        }]));
    }

    _showObjects(there) {
        const wanted = there && this._settings.get_boolean('show-objects');
        const {relays, endpoints} = this._model.objects;
        const own = new Set([...this._model.folders.objects, ...this._model.processes.objects]);
        this._relays(shorten(wanted ? relays : [], RELAYS, relay => [relay.path, {
            icon: 'media-playlist-repeat-symbolic',
            title: relay.source,
            subtitle: `→ ${relay.sink}`,
            end: relay.state === 'paused' ? _('paused') : rate(relay.rate),
            values: relay.history,
            item: relay,
            icons: [relay.state === 'paused' ? 'media-playback-start-symbolic' : 'media-playback-pause-symbolic'],
        }]));
        const others = wanted ? endpoints.filter(endpoint => !own.has(endpoint.path)) : [];
        this._endpoints(shorten(others, ENDPOINTS, endpoint => [endpoint.path, {
            icon: 'network-transmit-receive-symbolic',
            title: endpoint.address,
            end: endpoint.depth === null ? '' : depth(endpoint.depth, endpoint.bytes),
            values: endpoint.depth === null ? null : endpoint.history,
        }]));
    }

    _relayRow() {
        const pause = {
            icon: 'media-playback-pause-symbolic',
            name: _('Pause or resume'),
            clicked: relay => this._model.objects.pause(relay),
        };
        const stop = {
            icon: 'media-playback-stop-symbolic',
            name: _('Stop'),
            clicked: relay => this._model.objects.stopRelay(relay),
        };
        return new Row({sparkline: true, buttons: [pause, stop]});
    }

    _buildFolders() {
        const item = this._folders = new PopupMenu.PopupSubMenuMenuItem(_('Watch This Folder'), true);
        item.icon.icon_name = 'folder-symbolic';
        this.menu.addMenuItem(item);
        item.menu.addMenuItem(new EntryRow(_('Path of a folder'), text => {
            const path = typedPath(text);
            if (!path)
                return Promise.reject(new Error(_('The path of a folder begins with / or ~')));
            return this._model.folders.add(path);
        }));
        this._suggestions = this._list(item.menu, content => {
            const row = new Row({activate: true});
            row.connect('activate', () => this._model.folders.add(content.item));
            return row;
        });
        this._watched = this._list(item.menu, () => new Row({
            buttons: [{
                icon: 'window-close-symbolic',
                name: _('Do not watch any more'),
                clicked: path => this._model.folders.remove(path),
            }],
        }));
    }

    _buildProcesses() {
        const item = this._processes = new PopupMenu.PopupSubMenuMenuItem(_('Tell When a Process Ends'), true);
        item.icon.icon_name = 'application-x-executable-symbolic';
        this.menu.addMenuItem(item);
        item.menu.addMenuItem(new EntryRow(_('Number or name of a process'),
            text => this._model.processes.watch(text)));
        this._inFront = this._list(item.menu, () => {
            const row = new Row({activate: true});
            row.connect('activate', () => this._model.processes.watch(`${row.item}`).catch(error => {
                console.warn(`org.example.IPC: ${error.message}`);
            }));
            return row;
        });
        this._awaited = this._list(item.menu, () => new Row({
            buttons: [{
                icon: 'window-close-symbolic',
                name: _('Do not tell'),
                clicked: process => this._model.processes.forget(process),
            }],
        }));
    }

    _list(menu, make) {
        const section = new PopupMenu.PopupMenuSection();
        menu.addMenuItem(section);
        const rows = new Rows(section, make);
        return items => rows.show(items);
    }

    _showFolders() {
        const watched = this._model.folders.list;
        const paths = watched.map(folder => folder.path);
        const usual = [GLib.get_home_dir(), GLib.get_user_special_dir(GLib.UserDirectory.DIRECTORY_DOWNLOAD)];
        this._suggestions(usual.filter(path => path && !paths.includes(path)).map(path => [path, {
            icon: 'list-add-symbolic',
            title: shortPath(path),
            item: path,
        }]));
        this._watched(watched.map(({path, error}) => [path, {
            icon: error ? 'dialog-warning-symbolic' : 'folder-symbolic',
            title: shortPath(path),
            subtitle: error,
            item: path,
        }]));
    }

    _showProcesses() {
        const awaited = this._model.processes.list;
        const app = Shell.WindowTracker.get_default().focus_app;
        const [pid] = app?.get_pids() ?? [];
        const fresh = pid && !awaited.some(it => it.pid === pid);
        this._inFront(fresh ? [[pid, {icon: 'list-add-symbolic', title: `${app.get_name()} (${pid})`, item: pid}]] : []);
        this._awaited(awaited.map(it => [it.address, {
            icon: 'application-x-executable-symbolic',
            title: `${it.name} (${it.pid})`,
            item: it,
        }]));
    }
});

/** The lines of the first items, and one for the others if there are too many. */
function shorten(items, most, line) {
    const lines = items.slice(0, most).map(line);
    if (items.length > most) {
        const title = fill(_('and {count} more'), {count: items.length - most});
        lines.push(['more', {icon: 'view-more-symbolic', title}]);
    }
    return lines;
}

function linkIcon({name, state, loopback}) {
    if (loopback)
        return 'computer-symbolic';
    if (name.startsWith('wl'))
        return state === 'up' ? 'network-wireless-symbolic' : 'network-wireless-offline-symbolic';
    return ['up', 'unknown'].includes(state) ? 'network-wired-symbolic' : 'network-wired-disconnected-symbolic';
}
