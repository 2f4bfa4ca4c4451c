// The last values of something, as a line; the highest touches the top.

import QtQuick
import org.kde.kirigami as Kirigami

Canvas {
    id: sparkline

    required property var values
    /** How many values the whole width is for. */
    readonly property int most: 40
    readonly property color stroke: Kirigami.Theme.highlightColor

    implicitWidth: Kirigami.Units.gridUnit * 4
    implicitHeight: Kirigami.Units.gridUnit
    onValuesChanged: requestPaint()
    onStrokeChanged: requestPaint()
    onPaint: {
        const context = getContext("2d");
        context.reset();
        context.strokeStyle = stroke;
        context.lineWidth = 1.5;
        const top = Math.max(1, ...values);
        values.forEach((value, place) => {
            const x = (most - values.length + place) * width / (most - 1);
            context.lineTo(x, 1 + (1 - value / top) * (height - 2));
        });
        context.stroke();
    }
}
