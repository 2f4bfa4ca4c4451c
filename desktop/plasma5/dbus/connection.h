// A bus, and the answers of what is called on it.

#pragma once

#include <QDBusConnection>
#include <QDBusPendingCall>
#include <QObject>
#include <QVariant>

class BusType : public QObject
{
    Q_OBJECT

public:
    enum Type { Session, System };
    Q_ENUM(Type)

    static QDBusConnection bus(Type type);
};

/** The answer of a call, when there is one. Whoever has called destroys it. */
class DBusPendingReply : public QObject
{
    Q_OBJECT
    Q_PROPERTY(bool isError READ isError NOTIFY finished)
    Q_PROPERTY(QVariantMap error READ error NOTIFY finished)
    Q_PROPERTY(QVariantList values READ values NOTIFY finished)

public:
    DBusPendingReply(const QDBusPendingCall &call, QObject *parent);

    bool isError() const;
    /** name and message */
    QVariantMap error() const;
    /** What the method returns. */
    QVariantList values() const;

Q_SIGNALS:
    void finished();

private:
    QDBusPendingCall m_call;
};

class DBusConnection : public QObject
{
    Q_OBJECT

public:
    DBusConnection(BusType::Type type, QObject *parent);

    /** Calls a method: service, path, iface, member, signature and arguments. */
    Q_INVOKABLE DBusPendingReply *asyncCall(const QVariantMap &message);

private:
    QDBusConnection m_bus;
};
