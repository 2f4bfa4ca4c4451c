// What the menu is made of: lines with an icon, two texts and something at their end; a line to type into; lists of
// lines that are kept as long as what they show is there, so that focus and scrolling stay where they are.

import Clutter from 'gi://Clutter';
import GObject from 'gi://GObject';
import Pango from 'gi://Pango';
import St from 'gi://St';

import * as PopupMenu from 'resource:///org/gnome/shell/ui/popupMenu.js';

/** Of what is less important; a style sheet of the shell cannot say it. */
const DIMMED = 180;

/** A curve of the last values, the newest at its right end; its top is the largest of them. */
export const Sparkline = GObject.registerClass(
class IpcSparkline extends St.DrawingArea {
    _init() {
        super._init({style_class: 'ipc-sparkline', y_align: Clutter.ActorAlign.CENTER});
        this._values = [];
    }

    present(values) {
        this._values = values;
        this.queue_repaint();
    }

    vfunc_repaint() {
        const [width, height] = this.get_surface_size();
        const cr = this.get_context();
        const color = this.get_theme_node().get_foreground_color();
        const top = Math.max(1, ...this._values);
        const step = width / 39;
        cr.setSourceRGBA(color.red / 255, color.green / 255, color.blue / 255, color.alpha / 255);
        cr.setLineWidth(1.5);
        this._values.forEach((value, place) => {
            const x = width - (this._values.length - 1 - place) * step;
            const y = height - 1 - (height - 2) * value / top;
            if (place === 0)
                cr.moveTo(x, y);
            else
                cr.lineTo(x, y);
        });
        cr.stroke();
        cr.$dispose();
    }
});

/** A line: icon, title, subtitle (none if empty), text at the end, buttons. */
export const Row = GObject.registerClass(
class IpcRow extends PopupMenu.PopupBaseMenuItem {
    _init({activate = false, sparkline = false, buttons = []} = {}) {
        // What cannot be activated is not greyed out: it is there to be read.
        super._init({activate, hover: activate, can_focus: activate});
        this.remove_style_class_name('popup-inactive-menu-item');
        this._icon = new St.Icon({style_class: 'popup-menu-icon', y_align: Clutter.ActorAlign.CENTER});
        this.add_child(this._icon);
        const texts = new St.BoxLayout({vertical: true, x_expand: true, y_align: Clutter.ActorAlign.CENTER});
        this._title = new St.Label();
        this._subtitle = new St.Label({style_class: 'ipc-small', opacity: DIMMED});
        this._title.clutter_text.ellipsize = Pango.EllipsizeMode.MIDDLE;
        this._subtitle.clutter_text.set({line_wrap: true, ellipsize: Pango.EllipsizeMode.NONE});
        texts.add_child(this._title);
        texts.add_child(this._subtitle);
        this.add_child(texts);
        this.label_actor = this._title;
        this._end = new St.Label({style_class: 'ipc-small ipc-end', opacity: DIMMED, y_align: Clutter.ActorAlign.CENTER});
        this.add_child(this._end);
        this._sparkline = sparkline ? new Sparkline() : null;
        if (this._sparkline)
            this.add_child(this._sparkline);
        this.buttons = buttons.map(button => this._button(button));
    }

    _button({icon, name, clicked}) {
        const button = new St.Button({
            style_class: 'icon-button ipc-button',
            icon_name: icon,
            accessible_name: name,
            can_focus: true,
            y_align: Clutter.ActorAlign.CENTER,
        });
        button.connect('clicked', () => clicked(this.item));
        this.add_child(button);
        return button;
    }

    /** `item` is what the buttons are about, which have other `icons` with it; without one there are none. */
    present({icon, title, subtitle = '', end = '', values = null, item = null, icons = []}) {
        this.item = item;
        this._icon.icon_name = icon;
        setText(this._title, title);
        setText(this._subtitle, subtitle);
        setText(this._end, end);
        this._sparkline?.present(values ?? []);
        if (this._sparkline)
            this._sparkline.visible = values !== null;
        this.buttons.forEach(button => (button.visible = item !== null));
        icons.forEach((name, place) => (this.buttons[place].icon_name = name));
    }
});

function setText(label, text) {
    if (label.text !== text)
        label.text = text;
    label.visible = text !== '';
}

/** A line to type into; `entered(text)` may return a promise that fails with what is wrong. */
export const EntryRow = GObject.registerClass(
class IpcEntryRow extends PopupMenu.PopupBaseMenuItem {
    _init(hint, entered) {
        super._init({activate: false, hover: false, can_focus: false});
        this.remove_style_class_name('popup-inactive-menu-item');
        const box = new St.BoxLayout({vertical: true, x_expand: true});
        this._entry = new St.Entry({hint_text: hint, accessible_name: hint, can_focus: true, x_expand: true});
        this._wrong = new St.Label({style_class: 'ipc-wrong', visible: false});
        this._wrong.clutter_text.set({line_wrap: true, ellipsize: Pango.EllipsizeMode.NONE});
        box.add_child(this._entry);
        box.add_child(this._wrong);
        this.add_child(box);
        this._entry.clutter_text.connect('activate', () => this._enter(entered));
    }

    async _enter(entered) {
        const text = this._entry.get_text().trim();
        if (!text)
            return;
        try {
            await entered(text);
            this._entry.set_text('');
            setText(this._wrong, '');
        } catch (error) {
            setText(this._wrong, error.message);
        }
    }
});

/** The lines of a section of a menu, one for each item, in the order of the items. */
export class Rows {
    constructor(section, make) {
        this._section = section;
        this._make = make;
        this._rows = new Map();
    }

    /** items: [key, what Row.present takes] */
    show(items) {
        const keys = new Set(items.map(([key]) => key));
        for (const [key, row] of this._rows) {
            if (!keys.has(key)) {
                row.destroy();
                this._rows.delete(key);
            }
        }
        items.forEach(([key, content], place) => {
            let row = this._rows.get(key);
            if (row) {
                this._section.moveMenuItem(row, place);
            } else {
                row = this._make(content);
                this._rows.set(key, row);
                this._section.addMenuItem(row, place);
            }
            row.present(content);
        });
    }
}
