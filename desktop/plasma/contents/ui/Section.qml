// A heading with lines below it; not there while there are none.

import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami

ColumnLayout {
    id: section

    required property string title
    required property var items
    /** How many lines there are at most. */
    required property int most
    required property Component delegate

    visible: items.length > 0
    spacing: Kirigami.Units.smallSpacing
    Layout.fillWidth: true

    Kirigami.ListSectionHeader {
        text: section.title
        Layout.fillWidth: true
    }
    Repeater {
        model: section.items.slice(0, section.most)
        delegate: section.delegate
    }
    Line {
        icon: "view-more-symbolic"
        title: i18np("and %1 more", "and %1 more", section.items.length - section.most)
        visible: section.items.length > section.most
        Layout.fillWidth: true
    }
}
