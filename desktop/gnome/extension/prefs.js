// Preferences: what is shown, which folders are watched, what is notified.

import Adw from 'gi://Adw';
import Gio from 'gi://Gio';
import Gtk from 'gi://Gtk';

import {ExtensionPreferences, gettext as _} from 'resource:///org/gnome/Shell/Extensions/js/extensions/prefs.js';

export default class IpcPreferences extends ExtensionPreferences {
    fillPreferencesWindow(window) {
        const settings = this.getSettings();
        const page = new Adw.PreferencesPage();
        page.add(group(_('Shown in the Menu'), [
            switchRow(settings, 'show-network', _('Network interfaces')),
            switchRow(settings, 'show-loopback', _('Loopback interface')),
            switchRow(settings, 'show-objects', _('Relays and endpoints')),
            switchRow(settings, 'show-events', _('Recent events')),
            numberRow(settings, 'events-shown', _('Number of recent events'), 15),
            switchRow(settings, 'feed-network', _('Events of network interfaces')),
            switchRow(settings, 'feed-devices', _('Events of devices')),
        ]));
        page.add(group(_('Notifications'), [
            switchRow(settings, 'notifications', _('Show notifications')),
            switchRow(settings, 'notify-processes', _('When a process has ended')),
            switchRow(settings, 'notify-folders', _('When a watched folder changes')),
        ]));
        page.add(new Folders(window, settings).group);
        window.add(page);
    }
}

function group(title, rows) {
    const made = new Adw.PreferencesGroup({title});
    rows.forEach(it => made.add(it));
    return made;
}

function switchRow(settings, key, title) {
    const widget = new Gtk.Switch({valign: Gtk.Align.CENTER});
    settings.bind(key, widget, 'active', Gio.SettingsBindFlags.DEFAULT);
    return row(title, widget);
}

function numberRow(settings, key, title, upper) {
    const adjustment = new Gtk.Adjustment({lower: 1, upper, step_increment: 1, value: settings.get_uint(key)});
    const widget = new Gtk.SpinButton({adjustment, valign: Gtk.Align.CENTER});
    adjustment.connect('value-changed', () => settings.set_uint(key, adjustment.value));
    return row(title, widget);
}

function row(title, widget) {
    const made = new Adw.ActionRow({title, activatable_widget: widget});
    made.add_suffix(widget);
    return made;
}

/** The list of watched folders, as the settings have it. */
class Folders {
    constructor(window, settings) {
        this._window = window;
        this._settings = settings;
        this._rows = [];
        const add = new Gtk.Button({icon_name: 'list-add-symbolic', tooltip_text: _('Add a folder'), has_frame: false});
        add.connect('clicked', () => this._choose());
        this.group = new Adw.PreferencesGroup({title: _('Watched Folders'), header_suffix: add});
        const changed = settings.connect('changed::folders', () => this._fill());
        window.connect('close-request', () => {
            settings.disconnect(changed);
            return false;
        });
        this._fill();
    }

    _fill() {
        this._rows.forEach(it => this.group.remove(it));
        const paths = this._settings.get_strv('folders');
        this._rows = paths.map(path => {
            const remove = new Gtk.Button({
                icon_name: 'user-trash-symbolic',
                tooltip_text: _('Do not watch any more'),
                valign: Gtk.Align.CENTER,
                has_frame: false,
            });
            remove.connect('clicked', () => {
                this._settings.set_strv('folders', this._settings.get_strv('folders').filter(it => it !== path));
            });
            return row(path, remove);
        });
        this._rows.forEach(it => this.group.add(it));
    }

    _choose() {
        // The one of GTK 4 that all of GNOME 43 to 48 have.
        const chooser = Gtk.FileChooserNative.new(_('Watch a Folder'), this._window,
            Gtk.FileChooserAction.SELECT_FOLDER, null, null);
        chooser.connect('response', (_chooser, response) => {
            const path = response === Gtk.ResponseType.ACCEPT ? chooser.get_file()?.get_path() : null;
            const folders = this._settings.get_strv('folders');
            if (path && !folders.includes(path))
                this._settings.set_strv('folders', [...folders, path]);
            this._chooser = null;
        });
        // Kept until it has answered.
        this._chooser = chooser;
        chooser.show();
    }
}
